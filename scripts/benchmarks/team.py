"""Who takes part: contenders by the names that tables give them, each in a process of its own."""

import sys
from argparse import Namespace
from contextlib import ExitStack
from types import TracebackType
from typing import final

from benchmarks.contenders import Job
from benchmarks.worker import Missing, Worker

BARE, EAGER, COMPILED = "bare loop", "vae_lab, eager", "vae_lab, compiled"
GRAPHED = f"{BARE}, CUDA graph"  # on a GPU
DEFAULT, PYTHAE, JAX, ROOF = "default Lightning", "pythae", "JAX, jit + scan", "matrix products alone"

PEERS = "jax_scan", "pythae_vae"
"""Modules of contenders that may live in another interpreter, or not at all."""


def jax_of(n: int) -> str:
    """JAX with n models at once."""
    return f"JAX, vmap of {n}"


def packed_of(n: int, launcher: str = "packed") -> str:
    """vae_lab with n runs at once."""
    return f"vae_lab, {n} {launcher}"


@final
class Team:
    """The contenders that are there. A context: their processes end with it.

    Args:
        given: of the command line
        cores: of each; None: all
    """

    def __init__(self, given: Namespace, cores: int | None = None) -> None:
        self.python, self.cores = given.peers_python or sys.executable, cores
        self.members: dict[str, Worker] = {}
        self.notes: list[str] = []
        self.stack = ExitStack()

    def join(self, name: str, job: Job) -> None:
        """Takes in a contender; one that is not there is skipped, with a note."""
        peer = job.module in PEERS
        try:
            worker = Worker(job, self.python if peer else sys.executable, self.cores)
        except (Missing, RuntimeError) as error:
            if not peer:
                raise
            return self.note(f"{name}: skipped, as {error}")
        self.members[name] = self.stack.enter_context(worker)
        if peer:
            self.note(f"{name}: {worker.about}")

    def note(self, line: str) -> None:
        """Keeps a line for the report."""
        self.notes.append(line)

    def __enter__(self) -> "Team":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stack.close()
