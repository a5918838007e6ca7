"""The machine that the figures are of, and what else it did meanwhile."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, final

PROC = Path("/proc")
BUSY = (0, 1, 2, 5, 6, 7)  # of the times in /proc/stat: user, nice, system, interrupts, and what a host takes
BEFORE = os.getloadavg()[0]  # later on the load is our own


class Noise(NamedTuple):
    """What else ran on the machine."""

    load: float  # processes that ran or waited before the benchmark began
    others: float  # cores that other processes took while it ran
    cores: int


@final
class Watch:
    """Watches the machine while a benchmark runs: a context. On Linux; elsewhere it sees the load alone."""

    def __enter__(self) -> "Watch":
        self.start, self.before = time.monotonic(), others()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = max(1e-9, time.monotonic() - self.start)
        self.noise = Noise(BEFORE, max(0.0, others() - self.before) / seconds, cores())


def others() -> float:
    """The seconds of all cores' time that processes have taken which this one did not start."""
    if not (PROC / "stat").exists():
        return 0.0
    times = list(map(int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]))
    ticks = sum(times[i] for i in BUSY) - tree()
    return ticks / os.sysconf("SC_CLK_TCK")


def tree() -> int:
    """The clock ticks that this process has taken, and those that it has started, and they."""
    parents, ticks = dict[int, int](), dict[int, int]()
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name before it may hold anything
        except OSError:  # it has just ended
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))  # its own, and its ended children's
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks.get(pid, 0) for pid in ours)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def confined(n: int | None) -> Iterator[None]:
    """Processes that are started meanwhile have so many cores; None: all. Linux alone can do it."""
    if n is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_of_them)[-n:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


def describe(device: str) -> dict[str, str]:
    """The machine and the versions, for a report."""
    import torch

    found = {"date": datetime.now(UTC).date().isoformat(), "processor": processor(), "cores": str(cores())}
    if device == "cuda":
        found["GPU"] = torch.cuda.get_device_name()
    names = "torch", "pytorch-lightning", "vae-lab"
    return found | {"python": platform.python_version()} | {name: version(name) for name in names}


def processor() -> str:
    """Its name, which of those of that name it is, and the widest vectors that it has."""
    try:
        lines = [line.partition(":") for line in (PROC / "cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    said = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = said.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2") if name in flags), "")
    family = f"(family {said['cpu family']}, model {said['model']})" if said.keys() >= {"cpu family", "model"} else ""
    return " ".join(filter(None, [said.get("model name", platform.machine()), family, widest.upper()]))
