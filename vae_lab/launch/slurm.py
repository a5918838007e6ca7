"""Slurm: the cells of a sweep as one array of jobs, submitted by submitit; a job that is preempted comes back."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, final

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from vae_lab.checks import number, whole
from vae_lab.launch import job, sweep
from vae_lab.launch.board import Board
from vae_lab.launch.job import Outcome
from vae_lab.launch.plan import Cell
from vae_lab.launch.pool import TICK, signals
from vae_lab.runs import record

FOLDER = ".slurm"
"""Beside the runs: what submitit keeps of its jobs, and for each run its job's number and its exit status."""

OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
"""States that a job does not leave, unless Slurm is about to requeue it."""

ASKED = 3
"""How often squeue may fail before a sweep, some of whose jobs were submitted before, gives up."""

PREEMPTED = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


@final
class Slurm:
    """Each job is Slurm's to place, to preempt and to requeue; a job that comes back continues where it was saved.

    Args:
        partition: where the jobs are queued; null: the cluster's default
        gpus_per_job: of a job, on each node
        cpus_per_job: of a job, for each of its tasks
        mem_gb: of a job, on each node; null: the cluster's default
        timeout_min: the time limit, in minutes; a job that reaches it is requeued, so it is none of the run
        nodes: of a job
        tasks_per_node: processes of a run that Slurm starts on each node: 1, or as many as trainer.devices. With 1,
            Lightning starts those of a node
        array_parallelism: the most jobs that run at a time
        signal_delay_s: how long before the time limit a job is told to save, in seconds
        max_requeues: how often a job may come back
        max_failures: no further job is started after so many have failed; null: however many
        poll_s: seconds between two questions to Slurm
        setup: lines of shell before the job's command, as `module load cuda`
        sbatch: more options of sbatch, by their long names, as {account: mine}
    Raises:
        ValueError: for what is not of that kind.
    """

    def __init__(
        self,
        partition: str | None = None,
        gpus_per_job: int = 0,
        cpus_per_job: int = 1,
        mem_gb: float | None = None,
        timeout_min: int = 60,
        nodes: int = 1,
        tasks_per_node: int = 1,
        array_parallelism: int = 256,
        signal_delay_s: int = 90,
        max_requeues: int = 100,
        max_failures: int | None = None,
        poll_s: float = 10.0,
        setup: Sequence[str] = (),
        sbatch: Mapping[str, Any] | None = None,
    ) -> None:
        self.partition = partition
        self.gpus_per_job = whole("hydra.launcher.gpus_per_job", gpus_per_job, least=0)
        self.cpus_per_job = whole("hydra.launcher.cpus_per_job", cpus_per_job)
        self.mem_gb = mem_gb if mem_gb is None else number("hydra.launcher.mem_gb", mem_gb, above=0)
        self.timeout_min = whole("hydra.launcher.timeout_min", timeout_min)
        self.nodes = whole("hydra.launcher.nodes", nodes)
        self.tasks_per_node = whole("hydra.launcher.tasks_per_node", tasks_per_node)
        self.array_parallelism = whole("hydra.launcher.array_parallelism", array_parallelism)
        self.signal_delay_s = whole("hydra.launcher.signal_delay_s", signal_delay_s)
        self.max_requeues = whole("hydra.launcher.max_requeues", max_requeues, least=0)
        self.max_failures = max_failures if max_failures is None else whole("hydra.launcher.max_failures", max_failures)
        self.poll_s = number("hydra.launcher.poll_s", poll_s, above=0)
        self.setup, self.sbatch = list(setup), dict(sbatch or {})

    def launch(self, config: DictConfig, overrides_of_cells: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Runs the sweep that Hydra has composed `config` for; the result of each cell.

        Raises:
            ValueError: also where there is no Slurm or no submitit.
        """
        if shutil.which("sbatch") is None:
            raise ValueError("hydra/launcher=slurm must be used where Slurm's commands are: there is no sbatch here")
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise ValueError("hydra/launcher=slurm needs submitit: pip install 'vae-lab[slurm]'") from None
        return sweep.launch(config, overrides_of_cells, self.array_parallelism, self.run)

    def parameters(self) -> dict[str, Any]:
        """What submitit is told."""
        given = {
            "slurm_partition": self.partition,
            "gpus_per_node": self.gpus_per_job,
            "mem_gb": self.mem_gb,
            "slurm_setup": self.setup,
        }
        return {
            "name": "vae-lab",
            "timeout_min": self.timeout_min,
            "nodes": self.nodes,
            "tasks_per_node": self.tasks_per_node,
            "cpus_per_task": self.cpus_per_job,
            "slurm_array_parallelism": self.array_parallelism,
            "slurm_signal_delay_s": self.signal_delay_s,
            # a process that has failed ends the run's others, which would wait for it
            "slurm_srun_args": ["--kill-on-bad-exit=1"],
            "slurm_additional_parameters": {"requeue": True} | self.sbatch,
        } | {name: value for name, value in given.items() if value}

    def run(self, cells: Sequence[Cell], waiting: Sequence[int], inherited: list[str], board: Board) -> None:
        """Submits the jobs of the cells that `waiting` numbers, and follows them to their ends.

        A job that an earlier command has left in the queue is followed, not submitted again. When this process is told
        to end, the jobs are cancelled: they save themselves first, for which they have the cluster's KillWait. When it
        loses its terminal, they go on.
        """
        with signals() as arrived:
            jobs = self.submit(cells, waiting, inherited)
            left, begun, gone = dict(jobs), set[int](), dict.fromkeys(jobs, 0)
            try:
                while left and not arrived:
                    states = look(left) or {}
                    for i, state in states.items():
                        if i not in begun and state in {"RUNNING", "COMPLETING"}:
                            begun.add(i)
                            board.start(i, f"job {left[i]}")
                        status = read(note(cells[i], "status"))
                        # without a word of its own a job is over when seen so twice: Slurm may be requeueing it
                        gone[i] = gone[i] + 1 if state in OVER else 0
                        if status is not None or gone[i] > 1:
                            if i not in begun:
                                board.start(i, f"job {left[i]}")
                            board.end(i, outcome(cells[i], left.pop(i), status))
                    if self.max_failures and board.failures() >= self.max_failures:
                        queued = {i for i, state in states.items() if state == "PENDING"} & set(left) - begun
                        cancel(left.pop(i) for i in queued)
                    pause(self.poll_s if left else 0, arrived)
            finally:
                if signal.SIGHUP not in arrived:  # a lost connection is nobody's wish; the next command finds the jobs
                    cancel(left.values())
                    for i in begun & set(left):
                        board.end(i, Outcome("partial", error=f"job {left[i]} was cancelled"))
        board.signal = arrived[0] if arrived else None

    def submit(self, cells: Sequence[Cell], waiting: Sequence[int], inherited: Sequence[str]) -> dict[int, str]:
        """The job of each cell, in one array; or the one that is still there.

        Raises:
            ValueError: where an earlier command has submitted some, and Slurm does not say whether they are there.
        """
        from submitit import AutoExecutor

        before = {i: name for i in waiting if (name := read(note(cells[i], "job")))}
        for _ in range(ASKED):
            if (states := look(before)) is not None:
                break
            time.sleep(self.poll_s)
        else:
            raise ValueError(
                f"squeue failed {ASKED} times, and jobs of this sweep may be in the queue: nothing was submitted. "
                "Try again when squeue answers"
            )
        jobs = {i: before[i] for i, state in states.items() if state not in OVER}
        new = [i for i in waiting if i not in jobs]
        if not new:
            return jobs
        executor = AutoExecutor(note(cells[new[0]], "job").parent, "slurm", slurm_max_num_timeout=self.max_requeues)
        executor.update_parameters(**self.parameters())
        for i in new:
            note(cells[i], "status").unlink(missing_ok=True)
        with executor.batch():
            submitted = [executor.submit(self.job(cells[i], inherited)) for i in new]
        for i, one in zip(new, submitted, strict=True):
            note(cells[i], "job").write_text(one.job_id)
            jobs[i] = one.job_id
        return jobs

    def job(self, cell: Cell, inherited: Sequence[str]) -> "Job":
        """What a cell's job does."""
        # wait: the run's last process, on a node that was lost, is given up only when its heartbeat is stale
        command = job.command([*inherited, *cell.overrides, "wait=true"])
        several = self.nodes * self.tasks_per_node > 1
        status = str(note(cell, "status"))
        return Job(command, cell.folder, status, self.cpus_per_job, several, self.max_requeues)


@final
class Job:
    """What submitit runs on the node, once in each of a job's tasks: the plain command of a run, as a process.

    Slurm's signals are passed on to it. It saves the run and exits with 143; then the job is requeued, unless Slurm is
    about to end or to requeue it anyway. Lightning's own requeueing has no part in it.

    Args:
        command: the run's
        folder: the run's
        note: the file for its exit status
        threads: of each task
        several: whether the tasks are the processes of one run, for Lightning to find
        max_requeues: how often the job may come back
    """

    def __init__(
        self, command: list[str], folder: str, note: str, threads: int, several: bool, max_requeues: int
    ) -> None:
        self.command, self.folder, self.note = command, folder, note
        self.threads, self.several, self.max_requeues = threads, several, max_requeues

    def __call__(self) -> None:
        from submitit.core.utils import UncompletedJobError

        env = job.environment(threads=self.threads)
        if self.several:
            env["SLURM_NTASKS"] = os.environ[
                "SLURM_NTASKS"
            ]  # by which Lightning takes the run's processes to be Slurm's
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: asks for a checkpoint, requeues, exits
        assert callable(requeue)
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with open(Path(self.folder) / job.LOG, "ab") as log:
            log.write(f"$ {shlex.join(self.command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                self.command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

        def pass_on(got: int, frame: FrameType | None) -> None:
            process.send_signal(got)

        for one in PREEMPTED:
            signal.signal(one, pass_on)
        status = process.wait()
        end = SystemExit(status if status >= 0 else 128 - status)
        if (-status if status < 0 else status - 128) in PREEMPTED:
            if not running():
                raise end  # Slurm knows what becomes of the job: it is cancelled, or requeued by others
            try:
                requeue(signal.SIGUSR2, None)
                time.sleep(600)  # only the first of a run's processes requeues: the others end with it, not before
            except UncompletedJobError as error:
                print(error, flush=True)
        if os.environ.get("SLURM_PROCID", "0") == "0":
            Path(self.note).write_text(str(status))
        raise end

    def checkpoint(self) -> object:
        """The same again, for submitit; None, which ends it, if it has come back too often."""
        from submitit.helpers import DelayedSubmission

        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return DelayedSubmission(self) if restarts < self.max_requeues else None


def outcome(cell: Cell, name: str, status: str | None) -> Outcome:
    """How a cell's job ended, given the exit status that it has left; None: it could not."""
    if status is None:
        if record.state(cell.folder) == "partial":
            return Outcome("partial", error=f"job {name} was cancelled or killed")
        why = f"job {name} was killed, ran out of memory, or could not start; see {FOLDER}/{name}_0_log.err"
        return Outcome("failed", error=why)
    found = job.outcome(cell.folder, int(status))
    return found._replace(error=f"job {name}: {found.error}, not requeued") if found.state == "partial" else found


def look(jobs: Mapping[int, str]) -> dict[int, str] | None:
    """The state of each job, by squeue, which needs no accounting; None while Slurm does not answer."""
    said = ask("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T") if jobs else ""
    if said is None:
        return None
    states = dict(line.split(maxsplit=1) for line in said.splitlines())
    return {i: states.get(name, "COMPLETED").strip() for i, name in jobs.items()}  # it forgets them, in minutes


def running() -> bool:
    """Whether Slurm means this process's job to go on: it is neither being cancelled nor requeued."""
    said = ask("squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}")
    return said is None or said.strip() == "RUNNING"


def cancel(jobs: Iterable[str]) -> None:
    """Cancels jobs; those that run are told to save."""
    if names := list(jobs):
        ask("scancel", *names)


def ask(*command: str) -> str | None:
    """What one of Slurm's commands prints; None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None


def pause(seconds: float, arrived: Sequence[int]) -> None:
    """Sleeps, unless a signal has arrived."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not arrived:
        time.sleep(TICK)


def note(cell: Cell, kind: str) -> Path:
    """The file that holds the number of a cell's last job (`job`), or the exit status that it left (`status`)."""
    return Path(cell.folder).absolute().parent / FOLDER / f"{cell.fingerprint}.{kind}"


def read(path: Path) -> str | None:
    """What was noted; None: nothing."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
