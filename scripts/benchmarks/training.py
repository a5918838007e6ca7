"""One run on one thread: steps per second of vae_lab, eager and compiled, and of others doing the same work."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import About, Comparison, Goal, compare
from benchmarks.contenders import Job
from benchmarks.team import BARE, COMPILED, DEFAULT, EAGER, GRAPHED, JAX, PYTHAE, ROOF, Team
from benchmarks.workloads import WORKLOADS, write

GOALS = {
    "W1": [Goal(EAGER, BARE, 0.95), Goal(COMPILED, BARE, 1.25, 1.55), Goal(EAGER, DEFAULT, 1.5)],
    "W1V10": [Goal(COMPILED, BARE, 1.3, 1.6)],
    "W5": [Goal(EAGER, BARE, 0.95), Goal(COMPILED, BARE, 2.0, 3.0), Goal(EAGER, DEFAULT, 2.5)],
    "conv": [Goal(EAGER, BARE, 0.98, 1.1), Goal(COMPILED, BARE, 0.98, 1.1)],
}
PEERS = "W1", "W5"  # where other libraries are measured too


def run(given: Namespace, folder: Path) -> Iterator[Comparison]:
    """A comparison for each workload."""
    for name in given.only or WORKLOADS:
        work = WORKLOADS[name]
        work = work._replace(steps=given.steps or work.steps)
        file = str(write(work, folder, given.root))
        with Team(given) as team:
            for contender, module, kind in lineup(name, given.device):
                team.join(contender, Job(module, work, file, str(folder / module), given.device, kind=kind))
            about = About(name, work.title, "steps/s", GOALS[name], team.notes, work.flops())
            yield compare(about, team.members, given.segments)


def options(parser: ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, help="workloads (default: all)")


def lineup(workload: str, device: str) -> Iterator[tuple[str, str, str]]:
    """Who takes part in a workload: name, module, kind."""
    yield BARE, "bare", ""
    yield EAGER, "shipped", "eager"
    yield COMPILED, "shipped", "compiled"
    if workload != "conv":
        yield ROOF, "products", ""
    if device == "cuda":
        yield GRAPHED, "bare", "graph"
        yield f"{BARE}, bf16", "bare", "bf16"
        yield f"{EAGER}, bf16", "shipped", "eager bf16"
    if workload in PEERS:
        yield DEFAULT, "lightning", ""
        yield PYTHAE, "pythae_vae", ""
    if workload != "conv":
        yield JAX, "jax_scan", ""
