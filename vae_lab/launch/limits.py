"""How many cores and how much memory there are for what a sweep starts, without torch."""

import math
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae_lab.launch.pool import Device, Slot

KEPT = 0.25  # of what is free, for others
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
MEMORY = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # of older kernels
}
"""Of each kind of groups of processes: the files that tell its limit and what is taken, and what of that is cached."""


def cores() -> int:
    """That this process may use at a time: by its affinity, and by its group, as in a container."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([there, *_quotas()])))


def share(slots: "Sequence[Slot]") -> float:
    """Bytes that a process in any of the slots may take where there is one in each: of the machine's memory, and of its
    GPUs'; infinite where nothing can be known."""
    shares = [free() / len(slots)]
    devices = Counter(device for slot in slots for device in slot.devices or [])
    shares += [free_of_gpu(device) / n for device, n in devices.items()]
    return (1 - KEPT) * min(shares)


def free() -> float:
    """Bytes of the machine's memory that may still be taken: by all, and by this process's group, as in a container."""
    return min([*_machine(), *_groups()], default=math.inf)


def free_of_gpu(device: "Device") -> float:
    """Bytes of a GPU's memory that nobody has taken."""
    words = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.TimeoutExpired):
        return 2**20 * int(subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout)
    return math.inf


def _machine() -> Iterator[int]:
    with suppress(OSError):
        for line in (PROC / "meminfo").read_text().splitlines():
            name, number, *_ = line.split()
            if name == "MemAvailable:":
                yield 2**10 * int(number)


def _groups() -> Iterator[int]:
    """What the groups of this process have left of their limits."""
    for kind, folder in _folders():
        if kind in MEMORY:
            most, taken, cached = MEMORY[kind]
            with suppress(OSError, ValueError):  # no limit is "max"
                numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / taken).read_text()) - int(numbers[cached])  # files that are cached make room
                yield max(0, int((folder / most).read_text()) - used)


def _quotas() -> Iterator[float]:
    """How many cores the groups of this process may use in the long run."""
    for kind, folder in _folders():
        with suppress(OSError, ValueError):  # no limit is "max", or -1
            if kind == "":
                most, period = map(int, (folder / "cpu.max").read_text().split())
            elif "cpu" in kind.split(","):  # of older kernels
                most, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            else:
                continue
            if most > 0:
                yield most / period


def _folders() -> Iterator[tuple[str, Path]]:
    """Where the groups tell their limits that this process is in, and those that these are in, with their kinds."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    for kind, path in (line.split(":", 2)[1:] for line in lines):
        own = GROUPS / kind / path.lstrip("/")
        for folder in (own, *own.parents):
            yield kind, folder
