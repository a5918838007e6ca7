"""What a process that trains or evaluates wants of its machine."""

import ctypes
import resource
import sys
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt(3)
HUGEPAGE = 14  # of Linux's madvise(2)


def tune() -> None:
    """From now on, in this thread and in those that begin later (so before torch has any), numbers below 1e-38 are
    taken for zero: weights that are not used come to have such gradients, which take a CPU many times as long. And
    memory that is free is kept: each step would have the system clear the same pages again, in a twentieth of its time.
    What is kept has huge pages, where the system gives any: what a step writes and reads is in no core's own cache, and
    finding a page takes time too.
    """
    import torch

    torch.set_flush_denormal(True)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(MMAP_THRESHOLD, 2**30) or libc.mallopt(MMAP_THRESHOLD, 2**25)  # the most that older ones take
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)  # the most that it takes; what `TOP_PAD` adds counts as free
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        libc.mallopt(TOP_PAD, 2**30)
        libc.free(libc.malloc(ctypes.c_size_t(2**24)))  # the heap grows by that, which takes no room until it is used
        libc.mallopt(TOP_PAD, 2**26)
        for first, last in heap():
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), HUGEPAGE)


def heap() -> list[tuple[int, int]]:
    """Where this process's heap lies: first and last address of its parts."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    ranges = (line.split()[0].split("-") for line in lines if line.endswith("[heap]"))
    return [(int(first, 16), int(last, 16)) for first, last in ranges]


def peaks() -> dict[str, int]:
    """The most memory that this process has had, in MiB: `peak_mib` of the machine's, and `gpu_peak_mib` of a GPU's.
    So far: runs that have a process together, or one after another, each have the peak of all up to then."""
    import torch

    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    if torch.cuda.is_initialized():
        found["gpu_peak_mib"] = torch.cuda.max_memory_reserved() // 2**20
    return found
