"""A contender in a process of its own: `python -m benchmarks.worker` reads a job, and then trains once for each line.

A process of its own, as the contenders would share a heap, and what they set in torch; and as some need another
interpreter.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, final

import numpy as np

from benchmarks.comparison import Taken
from benchmarks.contenders import Job, Weights
from benchmarks.machine import confined
from benchmarks.workloads import Workload, read

SCRIPTS = Path(__file__).parents[1]
HELD = 500  # images that each trained model is scored on, with the same noise


class Missing(Exception):
    """A contender is not there: what it needs is not installed."""


@final
class Worker:
    """A contender's process, seen from outside. A context; a call trains once.

    Args:
        job: what it is to do
        python: its interpreter
        cores: how many it has; None: all
        threads: of its arithmetic
    Raises:
        Missing: if what it needs is not installed there.
        RuntimeError: if it breaks, with its last words.
    """

    def __init__(self, job: Job, python: str = sys.executable, cores: int | None = None, threads: int = 1) -> None:
        self.job, self.log = job, tempfile.TemporaryFile("w+")  # noqa: SIM115
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        env = os.environ | {"PYTHONPATH": str(SCRIPTS), "WANDB_MODE": "offline"} | limits
        command = [python, "-m", "benchmarks.worker"]
        with confined(cores):
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
            )
        try:
            self.about = str(self.ask(json.dumps(job))["about"])
        except BaseException:
            self.close()
            raise

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.log.seek(0)
            words = " ".join(self.log.read().split())[-400:]
            raise RuntimeError(f"{self.job.module} has ended: {words or 'without a word'}")
        found = json.loads(answer)
        if "missing" in found:
            raise Missing(found["missing"])
        return found

    def __call__(self) -> Taken:
        found = self.ask("train")
        return Taken(self.job.models * self.job.work.steps / found["seconds"], found["loss"])

    def loss(self, file: Path) -> float:
        """The contender's loss of the weights, data and noise in an .npz file, as `save` has written it."""
        return float(self.ask(str(file))["loss"])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def save(file: Path, weights: Weights, x: np.ndarray, eps: np.ndarray) -> Path:
    """Writes what `Worker.loss` takes."""
    np.savez(file, *weights, x=x, eps=eps)
    return file


def held(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """The data x [B, D] and the noise eps [V, B, d] that all trained models are scored on."""
    x = read(Path(job.file))[:HELD]
    return x, np.random.default_rng(0).standard_normal((job.work.V, len(x), job.work.d)).astype(np.float32)


def serve(lines: IO[str], answers: IO[str]) -> None:
    """What the process does."""

    def answer(**content: object) -> None:
        print(json.dumps(content), file=answers, flush=True)

    fields = json.loads(lines.readline())
    job = Job(*fields)._replace(work=Workload(*fields[1]))
    try:
        contender = importlib.import_module(f"benchmarks.contenders.{job.module}").make(job)
    except ModuleNotFoundError as error:
        return answer(missing=f"{error.name} is not installed for {sys.executable}")
    answer(about=contender.about)
    x, eps = held(job)
    for line in map(str.strip, lines):
        if line == "train":
            gc.collect()  # no segment pays for what the one before left behind
            seconds, weights = contender.train()
            answer(seconds=seconds, loss=contender.loss(weights, x, eps) if weights else None)
        else:
            given = np.load(line)
            weights = [given[f"arr_{i}"] for i in range(len(given) - 2)]
            answer(loss=contender.loss(weights, given["x"], given["eps"]))


if __name__ == "__main__":
    told = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries print what they like
    serve(sys.stdin, told)
