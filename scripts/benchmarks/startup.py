"""What one waits for before anything is computed: answers of the command line, the first step, short runs."""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import launched
from benchmarks.comparison import About, Comparison, Goal, Taken, compare
from benchmarks.launched import command, seconds
from benchmarks.worker import SCRIPTS
from benchmarks.workloads import W5, write
from vae_lab import hints, runs
from vae_lab.cli import register_resolvers
from vae_lab.runs import identity, record

HYDRA, LIBRARIES = "import hydra", "import torch, pytorch_lightning, wandb"
FIRST = "train, to its first step"
MOST = 1.3  # times importing what is needed anyway


def run(given: Namespace, folder: Path) -> Iterator[Comparison]:
    """Seconds of commands, of a first step, and of short runs by the pool."""
    if "answers" in given.parts:
        yield answers(given, folder)
    if "first" in given.parts:
        yield first_step(given, folder)
    if "pool" in given.parts:
        yield pool(given, folder)


def answers(given: Namespace, folder: Path) -> Comparison:
    """What needs no torch."""
    outputs = f"paths.outputs={folder / 'finished'}"
    cells = [f"seed={i}" for i in range(given.cells)]
    finish(cells, folder / "finished")
    axis = ["-m", f"seed=range({given.cells})", outputs]
    commands = {
        "train --help": (command("train", "--help"), 0),
        "a mistake": (command("train", "likelihood=gausian"), 1),
        f"runs ls, of {given.cells}": (command("runs ls", outputs), 0),
        f"a sweep of {given.cells} that is finished": (command("train", *axis), 0),
    }
    contenders = {HYDRA: lambda: Taken(seconds([sys.executable, "-c", HYDRA]))}
    for name, (words, status) in commands.items():
        contenders[name] = lambda words=words, status=status: Taken(seconds(words, status=status))  # type: ignore[misc]
    goals = [Goal(name, HYDRA, MOST, most=True) for name in commands]
    found = compare(About("answers", "answers that need no torch", "s", goals), contenders, given.segments)
    assert not list(folder.glob("finished/*/checkpoints")), "runs that are recorded as finished were trained"
    return found


def finish(cells: list[str], outputs: Path) -> None:
    """Leaves the records of runs that are finished, without training any."""
    register_resolvers()
    for overrides in ([cell] for cell in cells):
        with initialize_config_dir(str(hints.CONF), version_base="1.3"):
            cfg = compose("train", [*overrides, f"paths.outputs={outputs}", "paths.run=.", "logger=none"])
        fingerprint = identity.fingerprint(cfg)
        folder = identity.folder(outputs, overrides, fingerprint)
        record.begin(folder, fingerprint, overrides)
        runs.write(folder / runs.CONFIG, OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        runs.write(folder / runs.METRICS, {"test/elbo": -1.0})
        record.end(folder, "finished", 1.0, {"test/elbo": -1.0}, -1.0)


def first_step(given: Namespace, folder: Path) -> Comparison:
    """A training process, until the optimiser has made a step."""

    def train() -> Taken:
        file, outputs = folder / f"{time.time_ns()}.txt", folder / f"{time.time_ns()}"
        callback = ["+callbacks.first._target_=benchmarks.first.First", f"+callbacks.first.file={file}"]
        words = [*callback, "sampling.block=1", "trainer.max_steps=1", *given.overrides, f"paths.outputs={outputs}"]
        start = time.time()
        seconds(command("train", *words), PYTHONPATH=str(SCRIPTS))
        return Taken(float(file.read_text()) - start)

    contenders = {LIBRARIES: lambda: Taken(seconds([sys.executable, "-c", LIBRARIES])), FIRST: train}
    goals = [Goal(FIRST, LIBRARIES, MOST, most=True)]
    return compare(About("first step", FIRST, "s", goals), contenders, given.segments)


def pool(given: Namespace, folder: Path) -> Comparison:
    """Short runs, each in a process that is forked from one with everything imported, or imports it itself."""
    work, steps = W5, 20
    file = write(work._replace(steps=steps), folder)
    warm, cold = (f"{given.short} short runs, {name}" for name in ("from a warm server", "each from nothing"))

    def sweep(is_warm: bool) -> Taken:
        rest = [*launched.data(file), *launched.trainer(steps, given.device), "callbacks=[checkpoint]", "logger=none"]
        words = command("train", "-m", f"seed=range({given.short})", *work.shape(), *rest)
        words += ["hydra/launcher=pool", f"hydra.launcher.warm={str(is_warm).lower()}"]
        return Taken(seconds([*words, f"paths.outputs={folder}/{time.time_ns()}"]))

    title = f"{given.short} runs of {steps} steps by hydra/launcher=pool, all cores"
    about = About("pool", title, "s", [Goal(cold, warm, 1.0)])
    return compare(about, {cold: lambda: sweep(False), warm: lambda: sweep(True)}, given.segments)


def options(parser: ArgumentParser) -> None:
    """Of the command line."""
    parts = ["answers", "first", "pool"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--cells", type=int, default=8, help="runs that are finished (default: %(default)s)")
    parser.add_argument("--short", type=int, default=8, help="short runs (default: %(default)s)")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the run that makes a step (default: none)")
