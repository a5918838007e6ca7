"""What a process that trains has of its machine."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

TUNED = """
from pathlib import Path
from vae_lab.commands import machine

machine.tune()
import torch

def part(address):
    "Of the part of memory that it lies in: the KiB that are there, and the flags."
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, dash, last = line.split()[0].partition("-")
        if dash:
            inside = int(first, 16) <= address < int(last, 16)
        elif inside and line.startswith("Rss:"):
            there = int(line.split()[1])
        elif inside and line.startswith("VmFlags:"):
            return there, line.split()[1:]
    return 0, []

x = torch.ones(2**24)
address = x.data_ptr()
there, flags = part(address)
del x
print(there, part(address)[0], *flags)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that can be told")
def test_memory_is_kept_and_has_huge_pages():
    """Those 64 MiB that a tensor takes and leaves."""
    done = subprocess.run([sys.executable, "-c", TUNED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    before, after, *flags = done.stdout.split()
    assert int(after) >= int(before) > 2**16
    if not THP.exists() or "[never]" in THP.read_text():
        pytest.skip("the system has no huge pages to give")
    assert "hg" in flags
