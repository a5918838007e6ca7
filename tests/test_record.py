"""A run's record and lock: one process at a time, a dead one's lock is taken over, and nothing is ever lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae_lab.runs import record, write

FINGERPRINT = "0123456789ab"
HERE, ELSEWHERE = socket.gethostname(), "another-host"


def lock(folder, **more):
    """A lock that this process did not take."""
    content = {"host": HERE, "pid": os.getpid(), "born": record._born(os.getpid()), "heartbeat": time.time()}
    write(folder / record.LOCK, content | more)


@pytest.fixture
def dead():
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# --- states


def test_a_run_goes_through_its_states(tmp_path):
    folder = tmp_path / "run"
    assert record.state(folder) == "new" and record.read(folder) is None
    with record.claim(folder) as found:
        assert found == "new" and record.state(folder) == "running"
        record.begin(folder, FINGERPRINT, ["d=2"])
        assert record.state(folder) == "running"
        record.end(folder, "partial", 1.5, peaks={"peak_mib": 30, "gpu_peak_mib": 10})
    assert record.state(folder) == "partial"
    with record.claim(folder) as found:
        assert found == "partial"
        record.begin(folder, FINGERPRINT, ["d=2"], "checkpoints/last.ckpt", "id")
        record.end(folder, "finished", 2.0, {"test/elbo": -1.0}, -2.0, peaks={"peak_mib": 20, "gpu_peak_mib": 40})
        assert record.state(folder) == "finished"
    known = record.read(folder)
    assert record.state(folder) == "finished"
    assert known["seconds"] == 3.5 and known["attempts"] == 2 and known["value"] == -2.0
    assert known["results"] == {"test/elbo": -1.0} and known["fingerprint"] == FINGERPRINT
    assert (known["peak_mib"], known["gpu_peak_mib"]) == (30, 40)  # the greatest of both processes
    assert known["host"] == HERE and known["pid"] == os.getpid() and known["started"] <= known["ended"]
    assert {"python", "torch", "vae-lab", "pytorch-lightning"} == known["versions"].keys()
    assert list(folder.iterdir()) == [folder / record.RECORD]  # no lock is left


def test_a_run_that_failed_says_why(tmp_path):
    with record.claim(tmp_path):
        record.begin(tmp_path, FINGERPRINT, [])
        record.end(tmp_path, "failed", 1.0, error="rec not finite")
    assert record.state(tmp_path) == "failed" and record.read(tmp_path)["error"] == "rec not finite"
    with record.claim(tmp_path) as found:
        assert found == "failed"


def test_a_run_whose_process_died_is_partial(tmp_path, dead):
    record.begin(tmp_path, FINGERPRINT, [])
    assert record.state(tmp_path) == "partial"
    lock(tmp_path, pid=dead)
    assert record.state(tmp_path) == "partial"
    with record.claim(tmp_path) as found:
        assert found == "partial"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"state": 3}', '{"state": "odd"}'])
def test_a_record_that_says_nothing_is_none(tmp_path, content):
    (tmp_path / record.RECORD).write_text(content)
    assert record.state(tmp_path) == "new"
    with record.claim(tmp_path) as found:
        assert found == "new"


# --- the lock


def test_a_claim_is_exclusive_and_names_who_has_it(tmp_path):
    with record.claim(tmp_path):
        with pytest.raises(record.Busy, match=f"process {os.getpid()} on {HERE}"), record.claim(tmp_path):
            pass
        assert record.alive(tmp_path)["pid"] == os.getpid()  # still
    assert record.alive(tmp_path) is None


def test_a_claim_ends_with_an_error_too(tmp_path):
    with pytest.raises(ZeroDivisionError), record.claim(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / record.LOCK).exists()


@pytest.mark.parametrize(
    ("what", "lives"),
    [
        ({}, True),
        ({"heartbeat": 0}, True),  # it was suspended: going on, it would train too
        ({"born": "1"}, False),  # another process with the id of one that is dead
        ({"born": None}, True),  # a host without /proc
        ({"born": None, "heartbeat": 0}, False),
        ({"host": ELSEWHERE}, True),
        ({"host": ELSEWHERE, "pid": 2**22 + 1}, True),
        ({"host": ELSEWHERE, "heartbeat": 0}, False),
        ({"host": ELSEWHERE, "heartbeat": None}, False),
    ],
)
def test_a_lock_is_that_of_a_living_process(tmp_path, what, lives):
    heartbeat = what.get("heartbeat", 1)
    what = what | ({} if heartbeat else {"heartbeat": heartbeat})
    lock(tmp_path, **what)
    assert (record.alive(tmp_path) is not None) is lives
    if lives:
        with pytest.raises(record.Busy), record.claim(tmp_path):
            pass
    else:
        with record.claim(tmp_path):
            assert record.alive(tmp_path)["host"] == HERE


def test_a_dead_process_has_no_lock(tmp_path, dead):
    lock(tmp_path, pid=dead)
    assert record.alive(tmp_path) is None
    with record.claim(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", '{"host"'])
def test_a_torn_lock_is_nobodys(tmp_path, content):
    (tmp_path / record.LOCK).write_text(content)
    with record.claim(tmp_path):
        assert record.alive(tmp_path)


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "BEAT", 0.01)
    with record.claim(tmp_path):
        first = record.alive(tmp_path)["heartbeat"]
        until = time.monotonic() + 30
        while record.alive(tmp_path)["heartbeat"] == first and time.monotonic() < until:
            time.sleep(0.01)
        assert record.alive(tmp_path)["heartbeat"] > first
    assert list(tmp_path.iterdir()) == []


CLAIM = """
import sys, time
from pathlib import Path
from vae_lab.runs import record
record.BEAT = 0.05
folder = Path(sys.argv[1])
"""


def process(code, folder):
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM + code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_process_whose_lock_was_taken_over_ends(tmp_path):
    holder = process("with record.claim(folder): print('have it', flush=True); time.sleep(60)", tmp_path)
    assert holder.stdout.readline() == "have it\n"
    with record._alone(tmp_path):
        lock(tmp_path, host=ELSEWHERE)
    assert holder.wait(30) == record.BUSY
    assert "was taken over" in holder.stderr.read()
    assert json.loads((tmp_path / record.LOCK).read_text())["host"] == ELSEWHERE  # it is left alone


def test_a_killed_process_leaves_its_run_to_the_next(tmp_path):
    code = "with record.claim(folder): record.begin(folder, 'f', []); print('begun', flush=True); time.sleep(60)"
    holder = process(code, tmp_path)
    assert holder.stdout.readline() == "begun\n"
    assert record.state(tmp_path) == "running"
    with pytest.raises(record.Busy, match=f"process {holder.pid} "), record.claim(tmp_path):
        pass
    holder.kill()
    holder.wait()
    assert record.state(tmp_path) == "partial"
    with record.claim(tmp_path) as found:
        assert found == "partial"


def test_of_many_processes_one_has_the_run(tmp_path, dead):
    """Each that comes in adds a line, waits, and adds another: the lines come in pairs if none was ever beside it."""
    folder = tmp_path / "new" / "run"
    folder.mkdir(parents=True)
    lock(folder, pid=dead)  # of which each finds that it may take it over
    code = """
with record.claim(folder, wait=True) as found:
    if found != "finished":
        with open(folder.parent / "log", "a") as file:
            print("in", file=file, flush=True)
            time.sleep(0.2)
            print("out", file=file, flush=True)
        record.begin(folder, "f", []); record.end(folder, "finished", 0.2)
"""
    several = [process(code, folder) for _ in range(6)]
    for one in several:
        assert one.wait(60) == 0, one.stderr.read()
    assert (folder.parent / "log").read_text().split() == ["in", "out"]
    assert not (folder / record.LOCK).exists()


def test_waiting_says_for_whom(tmp_path, capsys):
    code = "with record.claim(folder): print('have it', flush=True); time.sleep(1)"
    holder = process(code, tmp_path)
    assert holder.stdout.readline() == "have it\n"
    with record.claim(tmp_path, wait=True):
        pass
    assert f"process {holder.pid} on {HERE}: waiting" in capsys.readouterr().out
    assert holder.wait(10) == 0


# --- moving aside


def test_what_was_there_is_moved_aside_and_never_deleted(tmp_path):
    folder = tmp_path / "d-2-0123456789ab"
    for n in (1, 2):
        with record.claim(folder):
            record.begin(folder, FINGERPRINT, [])
            write(folder / "checkpoints" / "x.json", {"n": n})
            (folder / "job.log").write_text("of the launcher, which has it open")
            assert record.former(folder) == n - 1
            record.aside(folder)
            assert {p.name for p in folder.iterdir()} == {record.LOCK, "job.log"}
            assert record.former(folder) == n
    for n in (1, 2):
        old = folder.with_name(f"{folder.name}.old-{n}")
        assert json.loads((old / "checkpoints" / "x.json").read_text()) == {"n": n} and record.read(old)
    record.aside(folder)
    assert record.former(folder) == 2  # there was nothing more


def test_the_record_goes_first(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    record.begin(folder, FINGERPRINT, [])
    write(folder / "a.json", {})

    def fail(self, target):
        raise KeyboardInterrupt

    rename, moved = Path.rename, []

    def once(self, target):
        moved.append(self.name)
        return rename(self, target) if len(moved) == 1 else fail(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(KeyboardInterrupt):
        record.aside(folder)
    assert moved[0] == record.RECORD and record.state(folder) == "new"


def test_only_empty_folders_are_tidied(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "none"):
        record.tidy(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


# --- signals, and a run's other processes


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)]
)
def test_exit_statuses(number, status):
    stop = record.Preempted(number)
    assert stop.status == status and record.interrupted(stop) and not isinstance(stop, Exception)


def test_what_an_interruption_is():
    assert record.interrupted(KeyboardInterrupt())
    assert not record.interrupted(SystemExit(1)) and not record.interrupted(ValueError())
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does
    except SystemExit as stop:
        assert record.interrupted(stop)


def test_the_other_processes_do_what_the_first_decided(tmp_path, dead):
    record.begin(tmp_path, FINGERPRINT, [])
    lock(tmp_path, pid=dead)
    with pytest.raises(RuntimeError, match="has not begun"):
        record.leader(tmp_path, patience=0.2)  # what a process that is dead decided is not heard
    with record.claim(tmp_path):
        record.begin(tmp_path, FINGERPRINT, [], "checkpoints/last.ckpt")
        assert record.leader(tmp_path) == (False, "checkpoints/last.ckpt")
        record.end(tmp_path, "finished", 1.0)
        with pytest.raises(RuntimeError):
            record.leader(tmp_path, patience=0.2)
    assert record.leader(tmp_path) == (True, None)


def test_it_needs_no_torch():
    code = "import sys; from vae_lab.runs import record, identity; assert not {'torch', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
