"""A sweep's jobs in processes of their own, against Hydra's basic launcher, which runs them one after another on all
cores: cells of which start-up is under a tenth, and short ones."""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks import launched
from benchmarks.comparison import About, Comparison, Goal, Taken, compare
from benchmarks.launched import command, seconds
from benchmarks.machine import cores
from benchmarks.workloads import W1, write

BASIC, POOL = "hydra/launcher=basic", "hydra/launcher=pool"
GOAL = 1.35  # for long cells
LONG = 12  # times its start-up: a long cell
CALIBRATION = 300  # steps


def run(given: Namespace, folder: Path) -> Iterator[Comparison]:
    """Seconds, with long cells and with short ones."""
    file = write(W1._replace(steps=100), folder)

    def sweep(steps: int, *more: str) -> float:
        run = [*more, *W1.shape(), *launched.data(file), *launched.trainer(steps, given.device)]
        run += ["trainer.max_epochs=-1", "callbacks=[checkpoint]", "logger=none"]
        return seconds(command("train", *run, f"paths.outputs={folder}/{time.time_ns()}"))

    # the first finds nothing in the disk's cache; and a job of the pool has one thread
    _, startup, longer = (sweep(steps, "-m", "seed=0", POOL) for steps in (1, 1, CALIBRATION))
    step = max(1e-4, (longer - startup) / CALIBRATION)
    axis = "-m", f"seed=range({given.cells})"
    for name, aim in (("long", given.seconds or LONG * startup), ("short", startup / 4)):
        steps = max(1, round(aim / step))
        share = startup / (startup + steps * step)
        title = f"{given.cells} runs of {W1.title}, {steps:,} steps each, {share:.0%} start-up, {cores()} cores"
        contenders = {
            BASIC: lambda steps=steps: Taken(sweep(steps, *axis, BASIC)),
            POOL: lambda steps=steps: Taken(sweep(steps, *axis, POOL)),
        }
        goals = [Goal(BASIC, POOL, GOAL)] if name == "long" else []
        yield compare(About(f"{name} cells", title, "s", goals), contenders, given.segments, warm_up=False)


def options(parser: ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("--cells", type=int, default=2, help="runs of a sweep (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help=f"of a long cell (default: {LONG} times its start-up)")
