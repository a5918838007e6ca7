"""A run's record, `run.json`, and its lock: what state it is in, and that only one process works on it.

Neither needs a server or torch. A lock is held by a living process: on its own host one is asked for by its id, and
elsewhere by its heartbeat, for which hosts' clocks have to agree within seconds.
"""

import fcntl
import glob
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGINT
from typing import Any, NamedTuple

from vae_lab.runs import identity
from vae_lab.runs.files import write

RECORD, LOCK, WANDB = "run.json", "lock.json", "wandb"
STATES = ("new", "running", "partial", "failed", "finished")
BEAT, STALE = 5.0, 60.0  # seconds between heartbeats, and without one until a lock is nobody's
BUSY = 75  # exit status: another process has the run; try again later (EX_TEMPFAIL)
PACKAGES = ("vae-lab", "torch", "pytorch-lightning")


class Busy(RuntimeError):
    """Another process is at work on the run."""


class Preempted(BaseException):
    """Training was told to stop by a signal, and stopped where it can go on; no `Exception`, as it ends a sweep too."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal

    @property
    def status(self) -> int:
        """The exit status: that of Ctrl-C, or of SIGTERM, whichever signal asked for it."""
        return 130 if self.signal == SIGINT else 143


class Pruned(Exception):
    """A study has ended the training where it can go on, as others do better.

    Args:
        why: in words
        value: the run's, so far
    """

    def __init__(self, why: str, value: float | None) -> None:
        super().__init__(why)
        self.value = value


def interrupted(error: BaseException) -> bool:
    """Whether training was told to stop; Lightning has Ctrl-C end the process with status 1."""
    told = (Preempted, KeyboardInterrupt)
    return isinstance(error, told) or (isinstance(error, SystemExit) and isinstance(error.__context__, told))


def read(folder: str | Path) -> dict[str, Any] | None:
    """The record of the run in `folder`; None if there is none that can be read."""
    return _json(Path(folder) / RECORD)


def state(folder: str | Path) -> str:
    """One of STATES; `new`: nothing is recorded; `partial`: it was stopped, or its process is there no more."""
    left = _left(folder)
    return "running" if left != "finished" and alive(folder) else left


def alive(folder: str | Path) -> dict[str, Any] | None:
    """The lock of the run in `folder`, if the process that took it lives."""
    lock = _json(Path(folder) / LOCK)
    return lock if lock is not None and _lives(lock) else None


@contextmanager
def claim(folder: str | Path, wait: bool = False) -> Iterator[str]:
    """Makes the run in `folder` this process's for a while, and says what state it was left in (never `running`).

    The folder is made, and a lock whose process has died is taken over. A heartbeat keeps the lock; should another
    host have taken it over nonetheless, this process ends at once, with BUSY, before it can spoil the other's work.

    Args:
        wait: for another process to be done with it
    Raises:
        Busy: if another process has it, naming host and pid, and `wait` is false.
    """
    folder, told = Path(folder), False
    mine = _process()
    while (other := _take(folder, mine)) is not None:
        who = f"{folder.name} is being trained by process {other.get('pid')} on {other.get('host')}"
        if not wait:
            raise Busy(who)
        if not told:
            print(f"{who}: waiting", flush=True)
        told = True
        time.sleep(min(BEAT, 1.0))
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, mine, stop), daemon=True)
    beating.start()
    try:
        yield _left(folder)
    finally:
        stop.set()
        beating.join()
        with suppress(FileNotFoundError), _alone(folder):  # the folder may have been removed
            if _same(_json(folder / LOCK), mine):
                (folder / LOCK).unlink()


def begin(
    folder: Path,
    fingerprint: str,
    overrides: Sequence[str],
    checkpoint: str | None = None,
    wandb: str | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Records that the run is being trained.

    Args:
        arguments: of the command, where they are more than the overrides
        checkpoint: what training goes on from, relative to the folder; None: from the beginning
        wandb: the id of its W&B run
    """
    from importlib.metadata import version  # which takes a while to import

    before = read(folder) or {} if checkpoint else {}
    content = {
        "state": "running",
        "fingerprint": fingerprint,
        "format": identity.FORMAT,
        "overrides": list(overrides),
        "arguments": list(overrides if arguments is None else arguments),
        "cwd": os.getcwd(),
        "started": before.get("started") or _now(),
        "ended": None,
        "seconds": before.get("seconds") or 0.0,
        **{name: size for name, size in before.items() if name.endswith("peak_mib")},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "results": {},
        "value": None,
        "error": None,
        "checkpoint": checkpoint,
        "wandb": wandb,
        "attempts": before.get("attempts", 0) + 1,
    }
    write(folder / RECORD, content)


def end(
    folder: Path,
    state: str,
    seconds: float,
    results: Mapping[str, float | None] | None = None,
    value: float | None = None,
    error: str | None = None,
    peaks: Mapping[str, int] | None = None,
) -> None:
    """Records how training ended, `seconds` after `begin`: finished with results, partial, or failed with an error.

    Args:
        peaks: of memory, by name; of a run that has gone on, the greatest of all its processes' count
    """
    before = read(folder) or {}
    content = {"state": state, "ended": _now(), "seconds": round(before.get("seconds", 0.0) + seconds, 3)}
    content |= {name: max(size, before.get(name) or 0) for name, size in (peaks or {}).items()}
    write(folder / RECORD, before | content | {"results": dict(results or {}), "value": value, "error": error})


def content(folder: Path) -> list[Path]:
    """What a run has left in its folder, its record first: all but its lock, and a launcher's log of its job."""
    inside = (p for p in folder.iterdir() if LOCK not in p.name and p.suffix != ".log")
    return sorted(inside, key=lambda p: p.name != RECORD)


def aside(folder: Path) -> None:
    """Moves what a run has left in its folder to a new one, `<name>.old-<n>`."""
    if found := content(folder):
        (old := folder.with_name(f"{folder.name}.old-{former(folder) + 1}")).mkdir()
        for path in found:  # the record first: from then on the run is new, whatever happens to this process
            path.rename(old / path.name)


def former(folder: Path) -> int:
    """The greatest n of the folders `<name>.old-<n>`."""
    numbers = (p.name.rpartition("-")[2] for p in folder.parent.glob(f"{glob.escape(folder.name)}.old-*"))
    return max((int(n) for n in numbers if n.isdecimal()), default=0)


def wandb_folders(folder: Path) -> list[Path]:
    """What W&B keeps of the run in `folder`, beside that: a folder for each time it was taken up, the oldest first."""
    known = read(folder) or {}
    if not isinstance(name := known.get("wandb"), str):
        return []
    # two that were begun within a second: the later folder has a number after the id
    files = (folder.parent / WANDB).glob(f"*run-*-{(known_as := glob.escape(name))}*/run-{known_as}.wandb")
    return sorted((file.parent for file in files), key=lambda path: path.name.partition("run-")[2])


def tidy(folder: Path) -> None:
    """Removes a folder that holds nothing, and no other."""
    with suppress(OSError):
        folder.rmdir()


class Leader(NamedTuple):
    """What the first process of a run decided."""

    finished: bool
    checkpoint: str | None


def leader(folder: Path, patience: float = 600.0) -> Leader:
    """What the first of a run's processes decided, for the others: waits until it has recorded it.

    Raises:
        RuntimeError: if nothing has been recorded after `patience` seconds.
    """
    for _ in range(int(patience / 0.1)):
        lock, known = alive(folder), read(folder) or {}
        if lock is None and known.get("state") == "finished":
            return Leader(True, None)
        if lock is not None and known.get("state") == "running" and known.get("pid") == lock.get("pid"):
            return Leader(False, known.get("checkpoint"))
        time.sleep(0.1)
    raise RuntimeError(f"the first process of {folder.name} has not begun after {patience:.0f} s")


# --- the lock


def _take(folder: Path, mine: dict[str, Any]) -> dict[str, Any] | None:
    """Takes the lock; or the lock of another process that lives."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _alone(folder):
                if (folder / LOCK).exists():
                    other = _json(folder / LOCK)
                    if other is not None and _lives(other):
                        return other
                    (folder / LOCK).unlink(missing_ok=True)
                write(new := folder / f".{LOCK}.new.{os.getpid()}", mine | {"heartbeat": time.time()})
                try:
                    os.link(new, folder / LOCK)  # whoever comes second fails, also where a file system has no flock
                finally:
                    new.unlink()
                return None
        except (FileExistsError, FileNotFoundError):
            continue  # another process was quicker to take it, or found the folder empty and tidied it away


def _beat(folder: Path, mine: dict[str, Any], stop: threading.Event) -> None:
    """The heartbeat, in a thread of its own."""
    while not stop.wait(BEAT):
        with suppress(OSError), _alone(folder):  # a file system may be away for a while
            lock = _json(folder / LOCK)
            if lock is not None and not _same(lock, mine):
                print(f"error: {folder.name} was taken over by another process", file=sys.stderr, flush=True)
                os._exit(BUSY)
            write(folder / LOCK, mine | {"heartbeat": time.time()})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time looks at the lock and writes it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot; there creating the lock is what decides
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _process() -> dict[str, Any]:
    """What tells this process from every other."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}


def _born(pid: int) -> str | None:
    """When a process of this host began, in the kernel's words; None where there is no /proc, or no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _lives(lock: Mapping[str, Any]) -> bool:
    heartbeat = lock.get("heartbeat")
    fresh = isinstance(heartbeat, int | float) and time.time() - heartbeat < STALE
    pid, born = lock.get("pid"), lock.get("born")
    if lock.get("host") != socket.gethostname() or not isinstance(pid, int):
        return fresh
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    # a process that was suspended lives; one that has the id of a dead one was born at another time
    return born == _born(pid) if born is not None and _born(pid) is not None else fresh


def _same(lock: Mapping[str, Any] | None, mine: Mapping[str, Any]) -> bool:
    return lock is not None and all(lock.get(k) == v for k, v in mine.items())


def _left(folder: str | Path) -> str:
    """The state that a run was left in."""
    found = (read(folder) or {}).get("state")
    return "partial" if found == "running" else found if found in STATES else "new"


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
