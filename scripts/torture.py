"""`python scripts/torture.py --kills 100`: runs are killed at random moments, started again, and compared.

A small sweep is trained once undisturbed. Then each of its runs is killed (SIGKILL, its whole process group) at moments
drawn at random: at any time, once it trains, or while it saves. After each kill every file must be whole, and the run
must go on from no earlier step than before; the same command continues it, until it ends by itself. Then weights,
optimisers and all that it logged must be those of the undisturbed run, bit by bit, and typing the command once more
must train nothing. Exits 1 at the first that is not so.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vae_lab import cli
from vae_lab.callbacks.history import rows
from vae_lab.commands import training  # noqa: F401  what forked processes then need not import

Process = get_context("fork").Process
FORK = "--fork"

RUNS = (
    "",
    "preprocessing=binarised_dynamic likelihood=bernoulli sampling=with_replacement",
    "likelihood=gaussian_optimal objective.warmup=100 schedule=cosine",
    "encoder=free encoder.steps=2",
    "objective=iwae d=3",
)
COMMON = "trainer.max_epochs=30 trainer.log_every_n_steps=10 sampling.block=2 callbacks=[checkpoint] logger=none"
SAVING = "callbacks.checkpoint.every_seconds=0.05"


class Outcome(NamedTuple):
    """Of a run that was killed: how often, steps made by all its processes together, and those that it has."""

    kills: int
    made: int
    steps: int


def start(overrides: str, folder: Path) -> ForkProcess:
    """The command that trains one run, as the first of a process group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    process = Process(target=train, args=(overrides, folder))
    process.start()
    return process


def train(overrides: str, folder: Path) -> None:
    """What that process does."""
    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    words = ["train", *COMMON.split(), SAVING, *overrides.split(), f"paths.outputs={folder}"]
    if FORK in sys.argv:
        cli.main(words)
    else:
        os.execv(sys.executable, [sys.executable, "-m", "vae_lab.cli", *words])


def finish(overrides: str, folder: Path, limit: float) -> Path:
    """Trains a run to its end, undisturbed; its folder."""
    process = start(overrides, folder)
    process.join(limit)
    require(process.exitcode == 0, f"exit status {process.exitcode}; it said: {said(folder)}")
    run = run_in(folder)
    assert run is not None
    return run


def said(folder: Path) -> str:
    """The last that a run's processes printed."""
    return (folder / "output.txt").read_text()[-2000:]


def run_in(folder: Path) -> Path | None:
    """The folder of the one run that was begun in `folder`."""
    found = sorted(path.parent for path in folder.glob("*/run.json"))
    require(len(found) < 2, f"{folder} has several runs: {', '.join(run.name for run in found)}")
    return found[0] if found else None


def kill(process: ForkProcess, folder: Path, choose: random.Random, length: float, most: int) -> bool:
    """Kills the process at a moment drawn at random; False if it had ended by itself.

    Args:
        length: of the undisturbed run, in seconds
        most: the rows that it logged
    """
    phase, now = choose.choice(("any time", "training", "saving")), lines(folder)
    goal = choose.randint(now, max(now, (now + most) // 2)) if phase != "any time" else most + 1
    until = time.monotonic() + choose.uniform(0, length) * (1 if phase == "any time" else 10)
    while process.is_alive() and time.monotonic() < until and lines(folder) <= goal:
        time.sleep(0.001)
    while phase == "saving" and process.is_alive() and time.monotonic() < until:
        if list(folder.glob("*/checkpoints/.*.tmp")):
            break
    if not process.is_alive():
        return False
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet
        process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def lines(folder: Path) -> int:
    """How many rows were logged below `folder`."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/history.jsonl"))


def step_of(folder: Path) -> int:
    """The step of the last checkpoint below `folder`, or 0; every file there must be whole."""
    run, step = run_in(folder), 0
    if run is None:
        return 0
    for name in ("run.json", "environment.json", "metrics.json"):
        if (run / name).exists():
            json.loads((run / name).read_text())
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        if path.exists():
            step = torch.load(path, weights_only=True)["global_step"]
    rows(run / "history.jsonl")
    return step


def logged(folder: Path) -> int:
    """The last step that is logged below `folder`."""
    run = run_in(folder)
    return max((row["step"] for row in rows(run / "history.jsonl")), default=0) if run is not None else 0


def torture(overrides: str, folder: Path, reference: Path, kills: int, choose: random.Random, length: float) -> Outcome:
    """Kills a run up to `kills` times, lets it end, and compares it with the undisturbed one."""
    done = made = step = 0
    most = len(rows(reference / "history.jsonl"))
    while done < kills:
        process = start(overrides, folder)
        if not kill(process, folder, choose, length, most):
            require(process.exitcode == 0, f"exit status {process.exitcode}; it said: {said(folder)}")
            made += logged(folder) - step
            break
        done += 1
        now = step_of(folder)
        require(now >= step, f"it goes on from step {now}, and went on from {step} before")
        made += max(0, max(logged(folder), now) - step)
        step = now
    else:
        finish(overrides, folder, 20 * length)
        made += logged(folder) - step
    run = run_in(folder)
    assert run is not None
    compare(run, reference)
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    finish(overrides, folder, 20 * length)
    require((run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before, "a finished run was trained again")
    return Outcome(done, made, logged(folder))


def compare(run: Path, reference: Path) -> None:
    """Requires that two runs come to the same, bit by bit."""
    for name in ("best", "last"):
        a, b = (torch.load(r / "checkpoints" / f"{name}.ckpt", weights_only=True) for r in (run, reference))
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            require(same(a[part], b[part]), f"{part} of {name}.ckpt differ from the undisturbed run's")
    a, b = ([measured(row) for row in rows(r / "history.jsonl")] for r in (run, reference))
    require(a == b, "the history differs from the undisturbed run's")
    a, b = (measured(json.loads((r / "metrics.json").read_text())) for r in (run, reference))
    require(a == b, "metrics.json differs from the undisturbed run's")
    require(not list(run.glob("checkpoints/.*.tmp")), "a half-written checkpoint was left")


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the time."""
    return {name: value for name, value in row.items() if name != "train/images_per_second"}


def same(a: object, b: object) -> bool:
    """Equal in every bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def require(condition: bool, otherwise: str) -> None:
    """Ends the process with 1 and a message where `condition` is false."""
    if not condition:
        sys.exit(f"FAILED: {otherwise}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many in all (default: %(default)s)")
    parser.add_argument("--each", type=int, default=5, help="at most, of one run (default: %(default)s)")
    parser.add_argument("--runs", nargs="*", default=RUNS, help="the sweep: each run's overrides, as one word")
    parser.add_argument(
        FORK, action="store_true", help="fork processes that have imported everything: more kills a minute"
    )
    parser.add_argument("--seconds", type=float, default=3600, help="begin no run after that many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    choose, begun = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        folder, references, lengths = Path(temporary), [], []
        for i, overrides in enumerate(arguments.runs):
            start_of_run = time.monotonic()
            references.append(finish(overrides, folder / f"reference{i}", 600))
            lengths.append(time.monotonic() - start_of_run)
        print(f"{len(references)} runs of {min(lengths):.1f} to {max(lengths):.1f} s, undisturbed", flush=True)
        kills = n = made = steps = 0
        while kills < arguments.kills and time.monotonic() - begun < arguments.seconds:
            i = n % len(references)
            most = min(arguments.each, arguments.kills - kills)
            print(f"{n + 1:4}  {arguments.runs[i] or 'defaults'}: ", end="", flush=True)
            outcome = torture(
                arguments.runs[i], folder / f"run{n}", references[i], choose.randint(1, most), choose, lengths[i]
            )
            print(f"{outcome.kills} kills, {outcome.made} steps for {outcome.steps}: the same bits", flush=True)
            n, kills = n + 1, kills + outcome.kills
            made, steps = made + outcome.made, steps + outcome.steps
    print(f"{kills} kills of {n} runs, all passed: {made} steps made for {steps}, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
