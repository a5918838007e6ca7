"""Runs that are trained together, on one core: against others that train one or many, step by step and as a whole."""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import vae_lab
from benchmarks import launched
from benchmarks.comparison import About, Comparison, Goal, Taken, compare
from benchmarks.contenders import Job
from benchmarks.contenders.bare import arrays
from benchmarks.launched import EPOCHS
from benchmarks.team import BARE, COMPILED, DEFAULT, GRAPHED, JAX, ROOF, Team, jax_of, packed_of
from benchmarks.worker import Worker, held, save
from benchmarks.workloads import W5, Workload, write

PLAIN = ["logger=none", "engine=compiled"]  # overrides of the runs that are launched; each has its own history

BETWEEN = "with all between epochs"


def run(given: Namespace, folder: Path) -> Iterator[Comparison]:
    """Model-steps per second, the parts of a step, and the seconds of a whole sweep."""
    if "steps" in given.parts:
        yield rates(given, folder)
    if "where" in given.parts:
        yield where(given, folder)
    if "whole" in given.parts:
        yield whole(given, folder)


def rates(given: Namespace, folder: Path) -> Comparison:
    """Model-steps per second of all models together."""
    n, work = given.runs, W5._replace(steps=given.steps or W5.steps)
    file, name = str(write(work, folder)), packed_of(n, given.launcher)
    with Team(given, cores(given)) as team:
        for contender, job in {
            BARE: Job("bare", work, file, str(folder), given.device),
            COMPILED: Job("shipped", work, file, str(folder / "compiled"), given.device, kind="compiled"),
            JAX: Job("jax_scan", work, file, str(folder), given.device),
            jax_of(n): Job("jax_scan", work, file, str(folder), given.device, n),
        }.items():
            team.join(contender, job)
        if given.device == "cuda":
            team.join(GRAPHED, Job("bare", work, file, str(folder), given.device, kind="graph"))
        packed = together(work, n, given, folder, team.members[BARE], f"{name}, {BETWEEN}")
        goals = [Goal(name, BARE, 3.5, 4.5), Goal(name, jax_of(n), 0.95, 1.1)]
        title = f"{work.title}: {n} runs at once, {work.steps:,} steps each, one core"
        about = About(f"W5, {n} runs", title, "steps/s", goals, team.notes, work.flops())
        return compare(about, {**team.members, name: packed}, given.segments)


def together(work: Workload, n: int, given: Namespace, folder: Path, bare: Worker, also: str) -> Callable[[], Taken]:
    """A sweep of n runs by the command line: how fast it trains, and what the last of them came to.

    Args:
        bare: scores that
        also: the name of the second figure, which has what runs do between epochs in it
    """
    file = write(work._replace(steps=work.steps // EPOCHS), folder)
    words = launched.sweep(work, file, n, given.launcher, given.device, *given.overrides)

    def segment() -> Taken:
        outputs = folder / f"{time.time_ns()}"
        _, found = launched.trained(work, [*words, f"paths.outputs={outputs}"], outputs, cores(given))
        *_, last = sorted(outputs.glob("*/run.json"))
        loss = bare.loss(save(outputs / "last.npz", arrays(vae_lab.load(last.parent)), *held(bare.job)))
        return Taken(found.seen if found.own is None else found.own, loss, {also: found.seen})

    return segment


def where(given: Namespace, folder: Path) -> Comparison:
    """What the compiled step of all models is made of: the same with one thing after another left out."""
    n = given.runs
    work = W5._replace(steps=max(10, (given.steps or W5.steps) // n))
    file = str(write(work, folder))
    with Team(given, cores(given)) as team:
        for name, module, kind in (
            (f"{packed_of(n)}, steps alone", "stacked", ""),
            ("without drawing data and noise", "stacked", "step"),
            ("without moving the weights either", "stacked", "gradient"),
            (ROOF, "products", ""),
        ):
            team.join(name, Job(module, work, file, str(folder), given.device, n, kind))
        about = About(
            "parts", f"{work.title}: the parts of a step of {n} models, one core", "steps/s", flops=work.flops()
        )
        return compare(about, team.members, given.segments)


def whole(given: Namespace, folder: Path) -> Comparison:
    """Seconds from nothing to the last run's end, with start-up and compiling."""
    n, work = given.runs, W5._replace(steps=given.whole_steps)
    packed, file = packed_of(n, given.launcher), write(work, folder)
    epoch = write(work._replace(steps=work.steps // EPOCHS), folder)

    def sweep(*more: str) -> Taken:
        outputs = folder / f"{time.time_ns()}"
        # so few steps are compiled where they were before
        overrides = ["engine=auto" if word == "engine=compiled" else word for word in given.overrides]
        words = launched.sweep(work, epoch, n, given.launcher, given.device, *overrides, *more)
        return Taken(launched.trained(work, [*words, f"paths.outputs={outputs}"], outputs, cores(given))[0])

    def first() -> Taken:
        return sweep(f"engine.cache={folder}/{time.time_ns()}")

    one = Job("lightning", work, str(file), str(folder / "lightning"), given.device)
    many = Job("jax_scan", work, str(file), str(folder), given.device, n)
    timed = min(n, given.timed)
    contenders: dict[str, Callable[[], Taken]] = {
        DEFAULT: lambda: Taken(n * fresh(one, sys.executable, timed, cores(given))),
        packed: sweep,
    }
    if "engine=eager" not in given.overrides:
        contenders[f"{packed}, nothing in the cache"] = first
    with Team(given) as team:  # only to know whether it is there
        team.join(jax_of(n), many)
    if team.members:
        contenders[jax_of(n)] = lambda: Taken(fresh(many, team.python, 1, cores(given)))
    notes = [*team.notes, f"{DEFAULT}: {timed} of the {n} runs were timed, and their mean taken {n} times"]
    title = f"{work.title}: a sweep of {n} runs, {work.steps:,} steps each, from nothing to its end, one core"
    about = About(f"sweep of {n}", title, "s", [Goal(DEFAULT, packed, 10, 20)], notes)
    return compare(about, contenders, given.segments)


def fresh(job: Job, python: str, times: int, cores: int | None) -> float:
    """The mean seconds of a contender's process, from its start to its end, which trains once."""
    start = time.perf_counter()
    for _ in range(times):
        with Worker(job, python, cores) as worker:
            worker()
    return (time.perf_counter() - start) / times


def cores(given: Namespace) -> int | None:
    """Of everybody: one, as the contenders are to be compared and not the machine's cores; all where a GPU works."""
    return 1 if given.device == "cpu" else None


def options(parser: ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("--runs", type=int, default=16, help="at once (default: %(default)s)")
    parser.add_argument("--launcher", default="packed", help="Hydra's (default: %(default)s)")
    parser.add_argument("--overrides", nargs="*", default=PLAIN, help="of its runs (default: %(default)s)")
    parts = ["steps", "where", "whole"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--whole-steps", type=int, default=1000, help="of each run of the whole sweep (%(default)s)")
    parser.add_argument("--timed", type=int, default=2, help="runs of default Lightning in each segment (%(default)s)")
