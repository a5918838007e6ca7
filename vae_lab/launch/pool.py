"""The jobs of a sweep on this machine: as many at a time as it has slots, each a GPU, several of them, or a core."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final, runtime_checkable

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from vae_lab import cli
from vae_lab.checks import flag, whole
from vae_lab.launch import job, sweep
from vae_lab.launch.board import Board
from vae_lab.launch.limits import cores
from vae_lab.launch.plan import Cell, here
from vae_lab.runs import record

if TYPE_CHECKING:
    from vae_lab.launch.warm import Server

TICK = 0.1  # seconds between looks at the processes
LOOK = 1.0  # seconds between looks at what they have done so far
GRACE = 60.0  # seconds that an interrupted job has to save itself

Device = int | str


class Slot(NamedTuple):
    """Where one job at a time runs."""

    devices: list[Device] | None  # GPUs; None: the CPU
    threads: int

    def __str__(self) -> str:
        return "CPU" if self.devices is None else f"GPU {','.join(map(str, self.devices))}"


@runtime_checkable
class Process(Protocol):
    """What `subprocess.Popen` is, and a server's `Worker`."""

    pid: int

    def poll(self) -> int | None:
        """The exit status, -n if signal n ended it; None while it runs."""

    def wait(self) -> int:
        """The exit status, once there is one."""


class Sweep(NamedTuple):
    """What the tasks of a sweep have in common."""

    cells: Sequence[Cell]
    inherited: list[str]  # options of the sweep's own command
    board: Board
    server: "Server | None"


class Task(ABC):
    """What a slot has to do, in a process."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it may start now."""

    @abstractmethod
    def start(self, slot: Slot) -> Process | None:
        """Its process, begun; None: there is nothing left to do."""

    @abstractmethod
    def look(self, status: int | None) -> list["Task"]:
        """Tells the board what has happened; `status` is how the process has ended, None while it has not. What is to
        be done besides."""


class Job(NamedTuple):
    """A process that runs."""

    slot: Slot
    process: Process


@final
class Single(Task):
    """A cell, as a job of its own."""

    def __init__(self, sweep: Sweep, i: int) -> None:
        self.sweep, self.i = sweep, i

    def ready(self) -> bool:
        return record.state(self.sweep.cells[self.i].folder) != "running"

    def start(self, slot: Slot) -> Process | None:
        cell, board = self.sweep.cells[self.i], self.sweep.board
        if cell.state != "finished" and record.state(cell.folder) == "finished":
            board.skip(self.i, job.outcome(cell.folder, 0))  # another process did it meanwhile
            return None
        process = start(cell, self.sweep.inherited, slot, self.sweep.server)
        board.start(self.i, str(slot))
        return process

    def look(self, status: int | None) -> list[Task]:
        if status is None:
            return []
        if status == record.BUSY:  # another process was quicker
            self.sweep.board.running.pop(self.i)
            return [self]
        self.sweep.board.end(self.i, job.outcome(self.sweep.cells[self.i].folder, status))
        return []


@final
class Pool:
    """Local processes, one for each slot.

    Args:
        devices: each slot's GPUs, as in [[0], [1], [2, 3]]; null: one slot for each GPU that is visible, and without
            GPUs one for every `threads` cores
        threads: of each job; null: 1 on the CPU, else the slot's share of the cores
        max_failures: no further job is started after so many have failed; null: however many
        warm: whether jobs of one process are forked of a process that has imported all that they take
    Raises:
        ValueError: for what is not of that kind.
    """

    def __init__(
        self,
        devices: Sequence[Device | Sequence[Device]] | None = None,
        threads: int | None = None,
        max_failures: int | None = None,
        warm: bool = True,
    ) -> None:
        self.devices = None if devices is None else [_devices(slot) for slot in _items(devices)]
        self.threads = threads if threads is None else whole("hydra.launcher.threads", threads)
        self.max_failures = max_failures
        if max_failures is not None:
            whole("hydra.launcher.max_failures", max_failures)
        self.warm = flag("hydra.launcher.warm", warm)

    def launch(self, config: DictConfig, overrides_of_cells: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Runs the sweep that Hydra has composed `config` for; the result of each cell."""
        slots = self.slots(config)
        with ExitStack() as stack:
            # a sweep that is finished needs none
            server = cache(lambda: stack.enter_context(warm_server(slots)))

            def place(cells: Sequence[Cell], waiting: Sequence[int], inherited: list[str], board: Board) -> None:
                whole = Sweep(cells, inherited, board, server() if self.warm else None)
                self.run(slots, [Single(whole, i) for i in waiting], board)

            def call(*asked: Any) -> Any:  # noqa: ANN401
                return server().call(*asked)

            return sweep.launch(config, overrides_of_cells, len(slots), place, call if self.warm else here)

    def slots(self, config: DictConfig) -> list[Slot]:
        """Where jobs run, one at a time in each; raises ValueError for GPUs that are not here."""
        devices = self.devices
        there = gpus() if devices is not None or config.trainer.accelerator in ("auto", "gpu", "cuda") else []
        if devices is None:
            devices = [[gpu] for gpu in there]
        elif absent := [str(d) for slot in devices for d in slot if str(d) not in there and not str(d)[:1].isalpha()]:
            listed = ", ".join(there) or "none"
            raise ValueError(f"hydra.launcher.devices must be GPUs that are here ({listed}), got {', '.join(absent)}")
        if devices:
            share = self.threads or max(1, cores() // len(devices))
            return [Slot(list(slot), share) for slot in devices]
        threads = self.threads or 1
        return [Slot(None, threads)] * max(1, cores() // threads)

    def run(self, slots: Sequence[Slot], tasks: Sequence[Task], board: Board) -> None:
        """Does the tasks, as many at a time as there are slots; ends them when this process is told to end."""
        queue, free, running, until = list(tasks), list(slots), dict[Task, Job](), 0.0
        with signals() as arrived:
            try:
                while (queue or running) and not arrived:
                    if self.max_failures and board.failures() >= self.max_failures:
                        queue = []
                    while free and (ready := [task for task in queue if task.ready()]):
                        queue.remove(task := ready[0])
                        if (process := task.start(free[0])) is not None:
                            running[task] = Job(free.pop(0), process)
                    time.sleep(TICK)
                    if time.monotonic() > until:
                        queue += [more for task in running for more in task.look(None)]
                        until = time.monotonic() + LOOK
                    for task, status in ended(running):
                        free.append(running.pop(task).slot)
                        queue += task.look(status)
            finally:  # interrupted, or an error of ours: no process outlives the sweep
                stop(running.values(), arrived)
                for task, status in ended(running):
                    task.look(status)
        board.signal = arrived[0] if arrived else None


def warm_server(slots: Sequence[Slot]) -> "Server":
    """What forks the jobs of these slots."""
    from vae_lab.launch.warm import Server  # multiprocessing

    # torch's compiler may look for a GPU when it is imported
    return Server(slots[0].threads, ["torch._inductor.compile_fx"] if slots[0].devices is None else [])


def start(cell: Cell, inherited: Sequence[str], slot: Slot, server: "Server | None") -> Process:
    """The job of a cell, begun; what it prints goes to the end of its log."""
    folder = Path(cell.folder)
    folder.mkdir(parents=True, exist_ok=True)
    several = [] if slot.devices is None or len(slot.devices) == 1 else spread(cell, len(slot.devices))
    command = job.command([*inherited, *cell.overrides, *several])
    env = job.environment(slot.devices, slot.threads)
    with open(folder / job.LOG, "ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        if server is not None and server.forks and server.threads == slot.threads and forkable(command):
            return server.start(repeat, (command[3:],), Path(log.name).absolute(), env)
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is ours to pass on; and the job's own processes end with it
        )


def forkable(command: Sequence[str]) -> bool:
    """Whether a command is our own, for a run of one process: of several, Lightning has the others begin anew, for
    which the first would only wait."""
    several = ("trainer=", "trainer.devices=", "trainer.num_nodes=", "trainer.strategy=")
    return list(command[1:3]) == ["-m", "vae_lab.cli"] and not any(w.lstrip("+").startswith(several) for w in command)


def repeat(arguments: list[str]) -> None:
    """What `python -m vae_lab.cli` does with these arguments."""
    sys.argv = [cli.__file__, *arguments]
    cli.main()


def spread(cell: Cell, n: int) -> list[str]:
    """What makes one run of `n` GPUs, unless the cell says so itself. It does not change the run's identity."""
    said = {override.lstrip("+").partition("=")[0] for override in cell.overrides}
    if said & {"trainer", "trainer.devices"}:
        return []
    return [f"trainer.devices={n}", *([] if "trainer.strategy" in said else ["trainer.strategy=ddp"])]


def ended(running: Mapping[Task, Job]) -> list[tuple[Task, int]]:
    """The tasks whose processes have ended, and their exit statuses."""
    return [(task, status) for task, (_, process) in running.items() if (status := process.poll()) is not None]


def stop(running: Collection[Job], arrived: list[int]) -> None:
    """Asks the processes to save their work and end; kills those that do not, and all when a second signal arrives."""
    for _, process in running:
        tell(process, signal.SIGTERM)
    patience, heard = time.monotonic() + GRACE, len(arrived)
    while any(process.poll() is None for _, process in running):
        if time.monotonic() > patience or len(arrived) > max(1, heard):
            for _, process in running:
                tell(process, signal.SIGKILL)
                process.wait()
        time.sleep(TICK)


def tell(process: Process, number: signal.Signals) -> None:
    """Sends a signal to a job and to the processes that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.killpg(process.pid, number)  # its session is its own


@contextmanager
def signals() -> Iterator[list[int]]:
    """The numbers of the signals to end that arrive meanwhile, which then interrupt nothing."""
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # as under nohup
    for number in before:
        signal.signal(number, note)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def gpus() -> list[str]:
    """The GPUs that a job may use, as nvidia-smi numbers them; torch is not asked, as importing it takes seconds."""
    if shutil.which("nvidia-smi") is None:  # so much is known at once
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    there = [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        there
        if visible is None or not there
        else [d.strip() for d in visible.split(",") if d.strip() not in ("", "-1")]
    )


def _items(devices: object) -> Sequence[Device | Sequence[Device]]:
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise ValueError(f"hydra.launcher.devices must be a list of slots, as [[0],[1],[2,3]], got {devices!r}")
    return devices


def _devices(slot: object) -> list[Device]:
    """The GPUs of a slot: a list of them, or one."""
    found = [slot] if isinstance(slot, int | str) else slot
    if not isinstance(found, Sequence) or not found or not all(isinstance(d, int | str) for d in found):
        raise ValueError(f"hydra.launcher.devices: a slot must be a GPU or a list of GPUs, got {slot!r}")
    return list(found)
