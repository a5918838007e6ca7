"""A warm server: a process that has imported what training takes, of which others are forked in no time.

It is the standard library's `forkserver`, so that nothing is forked that has threads, a GPU or a service of W&B: the
server has imported `vae_lab.launch.preloaded` and has done nothing else. What is forked of it becomes what the plain
command's process is: of its own session, environment, log, random numbers and temporary folders.
"""

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, TracebackType
from typing import Any, TypeVar, final

from vae_lab.launch import job

_server: Any = forkserver._forkserver  # multiprocessing's one, which has no public name

T = TypeVar("T")

OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # of a whole process group; the server ends with the sweep


@final
class Worker:
    """A process that a `Server` has started, as `subprocess.Popen` has them."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """The exit status, -n if signal n ended it; None while it runs."""
        status = self.process.exitcode
        return None if status == job.LOST and not ended(self.pid) else status

    def wait(self) -> int:
        """The exit status, once there is one."""
        self.process.join()
        while (status := self.poll()) is None:
            time.sleep(0.1)
        return status


@final
class Server:
    """Starts processes that have everything imported. A context: the server ends with it.

    It begins with the first process, or with `prepare`. Where there can be none (elsewhere than on Linux, say) each
    process is a fresh one, which does the same.

    Args:
        threads: of each process; None: as many as there are cores
        modules: imported too; their import must start nothing
    """

    def __init__(self, threads: int | None, modules: Sequence[str] = ()) -> None:
        self.threads, self.modules = threads, list(modules)
        self.forks = sys.platform == "linux"
        self.environment: dict[str, str] | None = None  # that the server has begun with

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.environment is not None:
            _server._stop()
            forkserver.set_forkserver_preload(["__main__"])
            self.environment = None

    def prepare(self) -> None:
        """Has the server begin, if it has not; does not wait for it."""
        if not self.forks or self.environment is not None:
            return
        if _server._forkserver_pid is not None:
            self.forks = False  # there is one that is somebody else's
            return
        forkserver.set_forkserver_preload(["vae_lab.launch.leaving", "vae_lab.launch.preloaded", *self.modules])
        resource_tracker.ensure_running()  # here, as it unblocks signals
        # TORCH_WARM_POOL: importing torch's compiler starts no processes
        environment = job.environment(threads=self.threads) | {"TORCH_WARM_POOL": "0"}
        try:
            with disguised(environment), blocked():
                forkserver.ensure_running()
        except OSError:
            self.forks = False
            return
        self.environment = environment

    def start(
        self, work: Callable[..., int | None], arguments: tuple[object, ...], log: Path, env: Mapping[str, str]
    ) -> Worker:
        """Starts `work(*arguments)` in a process of its own, a session of its own too.

        Args:
            work: a module's function; what it returns, or ends by, is the exit status as that of a script
            log: the file to whose end all output goes
            env: its environment
        Raises:
            EOFError: if the process could not become what it should, as where there can be no log.
        """
        self.prepare()
        if self.forks and self.environment is not None:
            try:
                return self.launch("forkserver", self.environment, work, arguments, log, env)
            except (OSError, EOFError):
                self.forks = False
        return self.launch("spawn", env, work, arguments, log, env)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """What a module's function comes to, which imports what takes seconds: in a process of its own, if one can be
        forked, as the server imports the same; else in this one.

        Raises:
            Exception: what the function raises.
            ChildProcessError: if that process was ended.
        """
        answers = self.asked(function, arguments)
        if answers is None:
            return function(*arguments)
        with answers:
            try:
                found, error = answers.recv()
            except EOFError:
                raise ChildProcessError("what tries the runs' parts was ended, maybe for lack of memory") from None
        if error is not None:
            raise error
        return found

    def asked(self, function: Callable[..., object], arguments: tuple[object, ...]) -> Connection | None:
        """Where the answer of a process arrives that is forked to find it; None: none can be forked."""
        self.prepare()
        if not self.forks or self.environment is None:
            return None
        ours, its = Pipe(duplex=False)
        try:
            with its:
                work = its, function, arguments
                self.launch("forkserver", self.environment, answer, work, None, self.environment)
        except (OSError, EOFError):
            self.forks = False
            ours.close()
            return None
        return ours

    def launch(
        self,
        method: str,
        inherited: Mapping[str, str],
        work: Callable[..., int | None],
        arguments: tuple[object, ...],
        log: Path | None,
        env: Mapping[str, str],
    ) -> Worker:
        """Starts a process by a method of multiprocessing's, with an environment to change into `env`. Without
        a log its output goes where the server's goes."""
        context = multiprocessing.get_context(method)
        ready, told = context.Pipe(duplex=False)
        made = (told, work, arguments, log and str(log), difference(inherited, env))
        process: BaseProcess = context.Process(target=begin, args=made, name="MainProcess")  # type: ignore[attr-defined]
        with ready:
            with told, disguised(inherited), blocked():
                process.start()
            ready.recv_bytes()
        return Worker(process)


def begin(
    ready: Connection,
    work: Callable[..., int | None],
    arguments: tuple[object, ...],
    log: str | None,
    changed: Mapping[str, str | None],
) -> None:
    """What a process does that a server has started: it becomes what a fresh one is, and works."""
    if (torch := sys.modules.get("torch")) and torch.cuda._is_in_bad_fork():
        os._exit(1)  # some import has looked at the GPUs: a fresh process takes over
    os.setsid()  # a Ctrl-C is the sweep's to pass on; and its own processes end with it
    if log is not None:
        with open(os.devnull, "rb") as nothing, open(log, "ab") as said:
            for file, fd in ((nothing, 0), (said, 1), (said, 2)):
                os.dup2(file.fileno(), fd)
    change(changed)
    multiprocessing.set_start_method(None, force=True)
    if forkserver.get_inherited_fds() is not None:
        part()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
    try:
        with ready:
            ready.send_bytes(b"")
    except BrokenPipeError:  # the sweep has ended meanwhile
        os._exit(1)

    from vae_lab import cli

    sys.modules["__main__"] = cli  # what Lightning repeats to start a run's other processes
    status: object = 1
    interrupted = False
    try:
        status = work(*arguments)
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        interrupted = isinstance(error, KeyboardInterrupt)
    # as at the end of a fresh process, which multiprocessing's have not
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(status)  # type: ignore[arg-type]


def answer(asked: Connection, function: Callable[..., object], arguments: Sequence[object]) -> None:
    """Sends what a function comes to; who has asked may have been killed."""
    found: tuple[object, Exception | None]
    try:
        found = function(*arguments), None
    except Exception as error:
        found = None, error
    with suppress(BrokenPipeError):
        asked.send(found)


def part() -> None:
    """Leaves the server nothing to wait for, and shares nothing with the others that were forked of it."""
    os.close(_server._forkserver_alive_fd)  # else the server would outlive the sweep
    _server._forkserver_alive_fd = None
    gc.freeze()  # what is never looked at is never copied
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
    # W&B makes folders when it is imported, and removes them at the end
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        folder = (finalizer.peek() or [None])[0]
        if isinstance(folder, TemporaryDirectory):
            finalizer.detach()
            TemporaryDirectory.__init__(folder)


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """What an environment has to have changed; None: to lose."""
    return {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def change(changed: Mapping[str, str | None]) -> None:
    """Changes this process's environment by a difference."""
    for name, value in changed.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def disguised(env: Mapping[str, str]) -> Iterator[None]:
    """What multiprocessing tells a new process of this one is meanwhile what holds for `python -m vae_lab.cli`."""
    path, main, before = sys.path[0], sys.modules["__main__"], dict(os.environ)
    change(difference(before, env))
    sys.modules["__main__"] = ModuleType("__main__")  # else it would be run once more
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    try:
        yield
    finally:
        sys.path[0], sys.modules["__main__"] = path, main
        change(difference(env, before))


@contextmanager
def blocked() -> Iterator[None]:
    """A process that begins meanwhile is not ended by a signal to all of this one's group, until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ended(pid: int) -> bool:
    """Whether a process has ended that may be another's child."""
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # it is not there, or nothing can be known of it
        return True
    try:
        return bool(connection.wait([fd], 0))
    finally:
        os.close(fd)
