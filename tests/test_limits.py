"""What there is for a sweep: of the machine, of the group of processes that this one is in, of its GPUs."""

import math
import os

import pytest

from vae_lab.launch import limits
from vae_lab.launch.pool import Slot

MIB = 2**20


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of which 4000 MiB are free, and this process in the group /a/b; writes the files of a group."""
    monkeypatch.setattr(limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {4000 * 1024} kB\n")

    def group(folder, files, kind=""):
        (tmp_path / "proc" / "self" / "cgroup").write_text(f"9:pids:/a\n0:{kind}:/a/b\n")
        path = tmp_path / "groups" / kind / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name).write_text(text)

    return group


def files(most, taken, cached):
    return {
        "memory.max": f"{most}\n",
        "memory.current": f"{taken * MIB}\n",
        "memory.stat": f"anon 1\ninactive_file {cached * MIB}\n",
    }


def test_what_is_free_is_the_machines(system):
    assert limits.free() == 4000 * MIB


def test_a_group_that_has_less_left_decides(system):
    system("a/b", files(3000 * MIB, 1500, 500))
    assert limits.free() == 2000 * MIB
    system("a", files(2500 * MIB, 1500, 500))  # and the one that it is in
    assert limits.free() == 1500 * MIB
    system("a", files("max", 1500, 500))
    assert limits.free() == 2000 * MIB
    system("a", files(1000 * MIB, 1500, 0))
    assert limits.free() == 0


def test_groups_of_older_kernels_count_too(system):
    old = {
        "memory.limit_in_bytes": f"{3000 * MIB}",
        "memory.usage_in_bytes": f"{1500 * MIB}",
        "memory.stat": f"inactive_file 0\ntotal_inactive_file {500 * MIB}\n",
    }
    system("a", old, kind="memory")
    assert limits.free() == 2000 * MIB


def test_where_nothing_is_known_nothing_is_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PROC", tmp_path)
    assert limits.free() == math.inf == limits.share([Slot(None, 1)])


def test_the_slots_share_the_machine_and_its_gpus(system, tmp_path, monkeypatch):
    assert limits.share([Slot(None, 1)] * 4) == 750 * MIB  # a quarter is left to others
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$1" = --id=1 ] && echo 800 || echo 400\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert limits.free_of_gpu("1") == 800 * MIB
    assert limits.share([Slot([0], 1), Slot([1], 1)]) == 300 * MIB
    assert limits.share([Slot([1], 1), Slot([1], 1)]) == 300 * MIB
    smi.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert limits.share([Slot([0], 1)]) == 3000 * MIB


def test_a_group_that_may_use_fewer_cores_decides(system, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert limits.cores() == 8
    system("a", {"cpu.max": "250000 100000\n"})
    assert limits.cores() == 2
    system("a/b", {"cpu.max": "50000 100000\n"})
    assert limits.cores() == 1
    system("a", {"cpu.max": "max 100000\n"})
    system("a/b", {"cpu.max": "max 100000\n"})
    assert limits.cores() == 8
    system("a", {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, kind="cpu,cpuacct")
    assert limits.cores() == 4
    system("a", {"cpu.cfs_quota_us": "-1\n"}, kind="cpu,cpuacct")
    assert limits.cores() == 8
