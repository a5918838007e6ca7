"""Ray: each cell of a sweep is a task of a cluster's, this machine's own or one that is there."""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from vae_lab.checks import number, whole
from vae_lab.launch import job, sweep
from vae_lab.launch.board import Board
from vae_lab.launch.job import Outcome
from vae_lab.launch.plan import Cell
from vae_lab.launch.pool import GRACE, TICK, signals, tell
from vae_lab.runs import record

PATIENCE = 1.0  # seconds between looks at the jobs, unless one ends
STORE = 100 * 2**20  # bytes of Ray's object store on this machine
PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a process gets when its parent dies
CARRIED = ("WANDB_", "VAE_LAB_")
"""Variables of this process's environment that its jobs see: a cluster's workers have that of their node."""


@final
class Ray:
    """Each job is Ray's to place; one that is lost with its node or its worker is run again, and continues.

    The nodes have to share the folder of the runs, and vae_lab has to be installed on each.

    Args:
        address: of a cluster, as `auto` for the one that this machine is part of; null: one of this machine alone, for
            as long as the sweep lasts
        gpus_per_job: of a job; a share of one, as 0.25, lets several jobs use it
        cpus_per_job: of a job
        max_retries: how often a job is run again that was lost
        max_failures: no further job is started after so many have failed; null: however many
    Raises:
        ValueError: for what is not of that kind.
    """

    def __init__(
        self,
        address: str | None = None,
        gpus_per_job: float = 0.0,
        cpus_per_job: float = 1.0,
        max_retries: int = 3,
        max_failures: int | None = None,
    ) -> None:
        self.address = address
        self.gpus_per_job = number("hydra.launcher.gpus_per_job", gpus_per_job, least=0)
        if self.gpus_per_job > 1:
            self.gpus_per_job = whole("hydra.launcher.gpus_per_job", gpus_per_job)  # only one GPU is shared
        self.cpus_per_job = number("hydra.launcher.cpus_per_job", cpus_per_job, above=0)
        self.max_retries = whole("hydra.launcher.max_retries", max_retries, least=0)
        self.max_failures = max_failures if max_failures is None else whole("hydra.launcher.max_failures", max_failures)

    def launch(self, config: DictConfig, overrides_of_cells: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Runs the sweep that Hydra has composed `config` for; the result of each cell.

        Raises:
            ValueError: also where there is no Ray, no cluster at the address, or none that can ever place a job.
        """
        authenticate()
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ValueError("hydra/launcher=ray needs Ray: pip install 'vae-lab[ray]'") from None
        return sweep.launch(config, overrides_of_cells, len(overrides_of_cells), self.run)

    def options(self) -> dict[str, Any]:
        """What Ray is told of each job."""
        return {"num_cpus": self.cpus_per_job, "num_gpus": self.gpus_per_job, "max_retries": self.max_retries}

    def run(self, cells: Sequence[Cell], waiting: Sequence[int], inherited: list[str], board: Board) -> None:
        """Has Ray run the jobs of the cells that `waiting` numbers; when this process is told to end, so are they.

        Raises:
            ValueError: if there is no cluster at the address, or this machine alone could never place a job.
        """
        import ray

        self.connect(board)
        place = ray.remote(work).options(**self.options())
        told = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        with signals() as arrived:
            # wait: the run's last process, on a node that was lost, is given up only when its heartbeat is stale
            commands = {i: [*inherited, *cells[i].overrides, "wait=true"] for i in waiting}
            threads, here, begun = max(1, int(self.cpus_per_job)), os.getcwd(), set[int]()
            left = {i: place.remote(o, cells[i].folder, here, threads, told) for i, o in commands.items()}
            try:
                while left and not arrived:
                    ray.wait(list(left.values()), timeout=PATIENCE)
                    for i, lock in {i: record.alive(cells[i].folder) for i in set(left) - begun}.items():
                        if lock is not None:
                            begun.add(i)
                            board.start(i, str(lock["host"]))
                    done, _ = ray.wait(list(left.values()), num_returns=len(left), timeout=0)
                    for i in [i for i, ref in left.items() if ref in done]:
                        if i not in begun:
                            board.start(i, "Ray")
                        board.end(i, outcome(cells[i], left.pop(i)))
                    if self.max_failures and board.failures() >= self.max_failures:
                        for i in set(left) - begun:
                            ray.cancel(left.pop(i))
            finally:
                for ref in left.values():
                    ray.cancel(ref)
                if left:
                    ray.wait(list(left.values()), num_returns=len(left), timeout=GRACE)
                for i in begun & set(left):
                    board.end(i, Outcome("partial", error="interrupted"))
                ray.shutdown()
        board.signal = arrived[0] if arrived else None

    def connect(self, board: Board) -> None:
        """Joins the cluster, or makes one of this machine."""
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # nothing but exit statuses goes through the store
            ray.init(address="local", include_dashboard=False, object_store_memory=STORE, **quiet)
        else:
            try:
                if (where := self.address.rpartition(":"))[0] and where[2].isdigit() and "://" not in self.address:
                    # Ray itself would try for minutes
                    socket.create_connection((where[0], int(where[2])), timeout=10).close()
                ray.init(address=self.address, **quiet)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"hydra.launcher.address must be a Ray cluster's, got {self.address!r}: {why}"
                ) from error
        wanted = {"CPU": self.cpus_per_job, "GPU": self.gpus_per_job}
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(kind, 0) >= n for kind, n in wanted.items()) for node in there):
            most = ", ".join(f"{max(node.get(kind, 0) for node in there):g} {kind}s" for kind in wanted)
            why = (
                f"a job needs {self.cpus_per_job:g} CPUs and {self.gpus_per_job:g} GPUs, and a node has at most {most}"
            )
            if self.address is None:
                ray.shutdown()
                raise ValueError(f"hydra.launcher.gpus_per_job and cpus_per_job must fit: {why}")
            board.say(f"{why}: waiting for one")


def authenticate() -> None:
    """Uses the token that this user has, as `ray start` does; without being told so, Ray's clients do not.

    Ray reads the variable when it is imported.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def work(overrides: list[str], folder: str, cwd: str, threads: int, told: dict[str, str]) -> int:
    """Ray's task: the plain command of a run, in a process of its own; its exit status.

    The process ends with its worker: Ray gives a job whose worker is lost to another, which would have to wait for it.

    Args:
        overrides: the run's
        folder: the run's
        cwd: where the sweep was started
        threads: of the job
        told: further variables of the environment
    """
    command = job.command(overrides)
    Path(folder).mkdir(parents=True, exist_ok=True)
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    with open(Path(folder) / job.LOG, "ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=job.environment(threads=threads) | told,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is not for it; and the job's own processes end with it
            preexec_fn=prctl and (lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)),
        )
    try:
        while process.poll() is None:
            time.sleep(TICK)  # in a call that blocks, Ray could not interrupt it
        return process.returncode
    finally:  # the sweep was interrupted
        tell(process, signal.SIGTERM)
        patience = time.monotonic() + GRACE
        while process.poll() is None:
            if time.monotonic() > patience:
                tell(process, signal.SIGKILL)
            time.sleep(TICK)


def outcome(cell: Cell, ref: Any) -> Outcome:  # noqa: ANN401  (Ray's types are Ray's)
    """How a cell's job ended."""
    import ray

    try:
        return job.outcome(cell.folder, ray.get(ref))
    except ray.exceptions.RayError as error:
        why = (str(error).strip().splitlines() or [""])[0]
        return Outcome("failed", error=f"lost by Ray, {type(error).__name__}: {why}")
