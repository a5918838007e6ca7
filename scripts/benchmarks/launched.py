"""vae_lab's command line in processes of its own: how long it takes, and how fast the runs are that it trains."""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import confined
from benchmarks.workloads import Workload

TICK = 0.05  # seconds between two looks at the runs
EPOCHS = 10  # of each run
RATE = "train/images_per_second"


class Rates(NamedTuple):
    """Model-steps a second of all runs of a command together."""

    own: float | None  # by what the runs log, which leaves out what happens between epochs; None: they took turns
    seen: float  # from the first of their first epochs' ends to the last of their last, with all that they do


def command(name: str, *words: str) -> list[str]:
    """vae_lab's command of that name."""
    return [sys.executable, "-m", "vae_lab.cli", *name.split(), *words]


def seconds(words: Sequence[str], cores: int | None = None, status: int = 0, **env: str) -> float:
    """How long a command takes.

    Raises:
        RuntimeError: if it does not end with `status`, with its last words.
    """
    start = time.perf_counter()
    with confined(cores):
        done = subprocess.run(words, env=environment(env), capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    check(words, done.returncode, status, done.stdout + done.stderr)
    return taken


def trained(work: Workload, words: Sequence[str], outputs: Path, cores: int | None = None) -> tuple[float, Rates]:
    """How long a command takes that trains runs of the workload into the empty folder `outputs`, and how fast they are.

    Raises:
        RuntimeError: if it fails, with its last words.
    """
    arrived: dict[Path, list[tuple[float, int]]] = {}  # when each epoch's row was there, and its step
    sizes: dict[Path, int] = {}
    outputs.mkdir(parents=True, exist_ok=True)
    start, log = time.perf_counter(), outputs / "output.txt"

    def look() -> None:
        now = time.perf_counter()
        for path in outputs.glob("*/history.jsonl"):
            if sizes.get(path) != (size := path.stat().st_size):
                sizes[path], steps = size, [step for step, _ in epochs(path)]
                known = arrived.setdefault(path, [])
                known += [(now, step) for step in steps[len(known) :]]

    with open(log, "w") as file, confined(cores):
        process = subprocess.Popen(words, env=environment({}), stdout=file, stderr=subprocess.STDOUT)
    while process.poll() is None:
        look()
        time.sleep(TICK)
    taken = time.perf_counter() - start
    look()
    check(words, process.returncode, 0, log.read_text())
    if not arrived:
        raise RuntimeError(f"{shlex.join(words)} has trained nothing")
    made = sum(rows[-1][1] - rows[0][1] for rows in arrived.values())
    between = max(rows[-1][0] for rows in arrived.values()) - min(rows[0][0] for rows in arrived.values())
    own, seen = 0.0, made / max(between, TICK)
    for path in arrived:
        # the first epoch warms up; in the last, runs of a pack wait for those before them, which are being tested
        _, *middle, _ = [rate for _, rate in epochs(path)]
        own += statistics.harmonic_mean(middle) / work.batch
    together = max(rows[0][0] for rows in arrived.values()) < min(rows[-1][0] for rows in arrived.values())
    return taken, Rates(own if together else None, seen)


def epochs(history: Path) -> list[tuple[int, float]]:
    """The step at each epoch's end, and the images per second."""
    lines = history.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(row["step"], row[RATE]) for row in rows if RATE in row]


def sweep(work: Workload, file: Path, runs: int, launcher: str, device: str = "cpu", *more: str) -> list[str]:
    """A sweep over seeds, all of whose runs train for the workload's steps, in EPOCHS epochs; nothing is held out.

    Args:
        file: of the images of an epoch, and one more
        launcher: Hydra's
    """
    size = [f"hydra.launcher.size={runs}", "hydra.launcher.flops=1e15"] if launcher == "packed" else []
    axis = ["-m", f"seed=range({runs})", f"hydra/launcher={launcher}", *size]
    run = [*work.shape(), *data(file), *trainer(work.steps, device), f"trainer.max_epochs={EPOCHS}", *more]
    return command("train", *axis, *run, "callbacks=[checkpoint]")


def data(file: Path) -> list[str]:
    """All of a file but one datum to train on."""
    return ["data=arrays", f"data.root={file}", "data.validation=0", "data.test=1"]


def trainer(steps: int, device: str) -> list[str]:
    """So many steps on that device."""
    return [f"trainer.max_steps={steps}", f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"]


def environment(more: dict[str, str]) -> dict[str, str]:
    """Of these commands: ours, but that launchers choose the threads, and that our modules are compiled once, as those
    of an installed package are."""
    aside = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"}
    return {k: v for k, v in os.environ.items() if k not in aside} | {"WANDB_MODE": "offline"} | more


def check(words: Sequence[str], status: int, wanted: int, said: str) -> None:
    """Raises RuntimeError if a command has not ended as it should."""
    if status != wanted:
        raise RuntimeError(f"{shlex.join(words)} ended with {status}: {' '.join(said.split())[-400:]}")
