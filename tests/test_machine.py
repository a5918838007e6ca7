"""What a process that trains has of its machine."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

TUNED = """
from pathlib import Path
from resource import getpagesize
from vae_lab.commands import machine

machine.tune()
import torch

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize() // 2**20

def flags(address):
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, dash, last = line.split()[0].partition("-")
        if dash:
            inside = int(first, 16) <= address < int(last, 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]

torch.ones(2)
before = resident()
x = torch.ones(2**24)
found = flags(x.data_ptr())
del x
print(resident() - before, *found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that can be told")
def test_memory_is_kept_and_has_huge_pages():
    """Those 64 MiB that a tensor takes and leaves."""
    done = subprocess.run([sys.executable, "-c", TUNED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kept, *flags = done.stdout.split()
    assert int(kept) >= 64
    if not THP.exists() or "[never]" in THP.read_text():
        pytest.skip("the system has no huge pages to give")
    assert "hg" in flags
