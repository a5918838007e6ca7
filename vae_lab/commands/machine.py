"""What a process that trains or evaluates wants of its machine."""

import ctypes
import resource
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt(3)


def tune() -> None:
    """From now on, in this thread and in those that begin later (so before torch has any), numbers below 1e-38 are
    taken for zero: weights that are not used come to have such gradients, which take a CPU many times as long. And
    memory that is free is kept: each step would have the system clear the same pages again, in a twentieth of its time.
    """
    import torch

    torch.set_flush_denormal(True)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc
        for option, size in ((MMAP_THRESHOLD, 2**30), (TRIM_THRESHOLD, 2**30), (TOP_PAD, 2**26)):
            mallopt(option, size)


def peaks() -> dict[str, int]:
    """The most memory that this process has had, in MiB: `peak_mib` of the machine's, and `gpu_peak_mib` of a GPU's.
    So far: runs that have a process together, or one after another, each have the peak of all up to then."""
    import torch

    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    if torch.cuda.is_initialized():
        found["gpu_peak_mib"] = torch.cuda.max_memory_reserved() // 2**20
    return found
