"""Jobs in processes of their own on this machine: where they run, what they may do to each other, how a sweep ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf
from rich.console import Console

from vae_lab.cli import main
from vae_lab.launch import board, job, limits, pool, sweep
from vae_lab.launch.job import Outcome
from vae_lab.launch.plan import Cell
from vae_lab.launch.pool import Pool, Slot
from vae_lab.runs.record import _born

ROOT = Path(__file__).parents[1]
TINY = ["trainer.max_epochs=1", "callbacks=[checkpoint]", "logger=none"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


JOB = """
import json, os, signal, sys, time
folder, words = sys.argv[1], dict(word.split("=") for word in sys.argv[2:])
def note(state, **more):
    with open(f"{folder}/run.json.new", "w") as file:
        json.dump({"state": state, **more}, file)
    os.replace(f"{folder}/run.json.new", f"{folder}/run.json")
def stop(number, frame):
    if "stubborn" not in words:
        note("partial")
        sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
env = os.environ
print("here", env.get("CUDA_VISIBLE_DEVICES"), env["OMP_NUM_THREADS"], "WORLD_SIZE" in env, flush=True)
began = time.time()
note("running")
time.sleep(float(words.get("sleep", 0)))
if "kill" in words:
    os.kill(os.getpid(), signal.SIGKILL)
if "fail" in words:
    print("the last words")
    note("failed", error="d must be 7")
    sys.exit(1)
note("finished", value=float(words["value"]) if "value" in words else None, began=began, ended=time.time())
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Runs cells whose jobs are a few lines of Python instead of training: their board."""
    (tmp_path / "job.py").write_text(JOB)

    def run(*overrides, launcher=None, slots=2, cells=None):
        launcher = launcher or Pool()
        cells = cells or [Cell(words.split(), str(tmp_path / f"run{i}"), f"{i}") for i, words in enumerate(overrides)]
        folders = {tuple(cell.overrides): cell.folder for cell in cells}
        monkeypatch.setattr(job, "command", lambda o: [sys.executable, str(tmp_path / "job.py"), folders[tuple(o)], *o])
        monkeypatch.setattr(sweep, "plan", lambda *args, **more: cells)
        places = slots if isinstance(slots, list) else [Slot(None, 1)] * slots
        monkeypatch.setattr(Pool, "slots", lambda self, config: places)
        config = OmegaConf.create({"hydra": {"overrides": {"hydra": []}, "runtime": {"config_sources": []}}})
        return launcher.launch(config, [cell.overrides for cell in cells])

    return run


def log(i):
    return Path(f"run{i}/{job.LOG}").read_text()


def record(i):
    return json.loads(Path(f"run{i}/run.json").read_text())


def test_a_killed_job_leaves_the_others_alone(jobs, capsys):
    done = jobs("value=1", "kill=1", "value=3", "fail=1", "value=5")
    assert [r.status for r in done] == [JobStatus.COMPLETED if i in (0, 2, 4) else JobStatus.FAILED for i in range(5)]
    assert [done[i].return_value for i in (0, 2, 4)] == [1.0, 3.0, 5.0]
    said = capsys.readouterr().out
    assert "failed   2/5 kill=1: killed by SIGKILL; out of memory?" in said
    assert "failed   4/5 fail=1: d must be 7\n  " in said and "the last words" in said and "run3/job.log" in said
    assert "best val/elbo 5.000: 5/5 value=5" in said and "5 runs: 3 finished, 2 failed" in said
    with pytest.raises(sweep.JobFailed, match="killed by SIGKILL"):
        _ = done[1].return_value


def test_jobs_end_in_any_order(jobs, capsys):
    """The results are in the cells' order all the same, and a slot that is free is used."""
    done = jobs("value=1 sleep=1.5", "value=2", "value=3 sleep=0.1", "value=4")
    assert [r.return_value for r in done] == [1.0, 2.0, 3.0, 4.0]
    assert all(record(i)["ended"] < record(0)["ended"] for i in (1, 2, 3))
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("finished")] == [
        *("2/4", "3/4", "4/4", "1/4")
    ]


def test_no_more_jobs_at_a_time_than_slots(jobs):
    jobs(*(f"sleep=0.3 value={i}" for i in range(4)))
    spans = [(record(i)["began"], record(i)["ended"]) for i in range(4)]
    assert max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans) <= 2


def test_too_many_failures_stop_a_sweep(jobs, capsys):
    done = jobs(*(f"fail={i}" for i in range(6)), launcher=Pool(max_failures=2), slots=1)
    assert [r.status for r in done] == [JobStatus.FAILED] * 6
    assert [Path(f"run{i}").exists() for i in range(6)] == [True, True, *[False] * 4]
    assert "6 runs: 0 finished, 2 failed, 4 waiting" in capsys.readouterr().out


def test_finished_cells_start_nothing_and_equal_cells_are_one(jobs, capsys, monkeypatch):
    Path("old").mkdir()
    Path("old/run.json").write_text(json.dumps({"state": "finished", "value": 9.0}))
    cells = [
        Cell(["value=9"], "old", "a", "finished"),
        Cell(["value=1"], "run1", "b"),
        Cell(["value=1", "again=1"], "run1", "b"),
    ]
    done = jobs(cells=cells)
    assert [r.return_value for r in done] == [9.0, 1.0, 1.0]
    assert log(1).count("$ ") == 1 and not Path("old/job.log").exists()
    assert "3 runs: 1 finished, 2 skipped" in capsys.readouterr().out
    monkeypatch.setattr(pool, "start", lambda *a: pytest.fail("a process was started"))
    again = [cell._replace(state="finished") for cell in cells]
    assert [r.return_value for r in jobs(cells=again)] == [9.0, 1.0, 1.0]


def test_a_run_of_another_process_is_waited_for(jobs, monkeypatch):
    """And not trained again when that has done it."""
    Path("run0").mkdir()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"])
    threading.Thread(target=other.wait).start()
    Path("run0/run.json").write_text(json.dumps({"state": "running"}))
    lock = {"host": os.uname().nodename, "pid": other.pid, "born": _born(other.pid), "heartbeat": time.time()}
    Path("run0/lock.json").write_text(json.dumps(lock))
    done = jobs("value=1", "value=2", slots=1)
    assert [r.return_value for r in done] == [1.0, 2.0]
    assert record(0)["ended"] > record(1)["ended"]  # the other process has left it unfinished


def test_a_job_sees_its_slot_alone(jobs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/elsewhere")
    assert not {"HYDRA_FULL_ERROR", "WANDB_SERVICE"} & job.environment().keys()
    slots = [Slot([0], 3), Slot([2, "GPU-7"], 4), Slot(None, 1)]
    jobs("sleep=0.5", "sleep=0.6 trainer.devices=2", "sleep=0.7", slots=slots)
    assert "here 0 3 False" in log(0) and "here 2,GPU-7 4 False" in log(1)
    assert f"here {os.environ.get('CUDA_VISIBLE_DEVICES')} 1 False" in log(2)


def test_a_slot_of_several_gpus_is_one_run_of_them():
    assert pool.spread(Cell(["d=2"]), 2) == ["trainer.devices=2", "trainer.strategy=ddp"]
    assert pool.spread(Cell(["trainer.strategy=fsdp"]), 2) == ["trainer.devices=2"]
    assert pool.spread(Cell(["trainer.devices=1"]), 2) == []


CONFIG = OmegaConf.create({"trainer": {"accelerator": "auto"}})


def test_slots_are_found(tmp_path, monkeypatch):
    cores = limits.cores()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Pool().slots(CONFIG) == [Slot(None, 1)] * cores
    assert Pool(threads=cores).slots(CONFIG) == [Slot(None, cores)]
    assert Pool(threads=cores + 1).slots(CONFIG) == [Slot(None, cores + 1)]
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-a)'\necho 'GPU 1: B (UUID: GPU-b)'\n")
    smi.chmod(0o755)
    share = max(1, cores // 2)
    assert Pool().slots(CONFIG) == [Slot(["0"], share), Slot(["1"], share)]
    assert Pool(devices=[[0, 1]], threads=3).slots(CONFIG) == [Slot([0, 1], 3)]
    assert Pool(devices=[0, 0, 1]).slots(CONFIG)[1].devices == [0]  # two jobs may share one
    assert Pool().slots(OmegaConf.create({"trainer": {"accelerator": "cpu"}}))[0].devices is None
    with pytest.raises(ValueError, match=r"hydra.launcher.devices must be GPUs that are here \(0, 1\), got 2"):
        Pool(devices=[[0], [2]]).slots(CONFIG)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [slot.devices for slot in Pool().slots(CONFIG)] == [["1"]]


WRONG = [{"devices": []}, {"devices": "0"}, {"devices": [[]]}, {"threads": 0}, {"max_failures": 0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_settings_are_refused(wrong, unchecked):
    with pytest.raises(ValueError, match=f"^hydra.launcher.{next(iter(wrong))}"):
        Pool(**wrong)


@pytest.mark.parametrize(
    ("kept", "status", "expected"),
    [
        ({"state": "finished", "value": 2}, 0, Outcome("finished", 2.0)),
        ({"state": "finished", "value": None}, 0, Outcome("finished")),
        ({"state": "running"}, 0, Outcome("failed", error="ended without a result")),
        (None, 0, Outcome("failed", error="ended without a result")),
        ({"state": "partial"}, 143, Outcome("partial", error="interrupted by SIGTERM")),
        ({"state": "partial"}, 130, Outcome("partial", error="interrupted by SIGINT")),
        ({"state": "running"}, -signal.SIGTERM, Outcome("partial", error="interrupted by SIGTERM")),
        ({"state": "running"}, -signal.SIGKILL, Outcome("failed", error="killed by SIGKILL; out of memory?")),
        ({"state": "running"}, -signal.SIGSEGV, Outcome("failed", error="killed by SIGSEGV")),
        ({"state": "failed", "error": "d must be"}, 1, Outcome("failed", error="d must be")),
        ({"state": "finished", "error": "old"}, 1, Outcome("failed", error="exit status 1")),
        ({"state": "finished", "value": 2}, job.LOST, Outcome("finished", 2.0)),  # nobody knows its status
        ({"state": "running"}, job.LOST, Outcome("failed", error="exit status 255")),
    ],
)
def test_outcomes(kept, status, expected):
    if kept is not None:
        Path("run.json").write_text(json.dumps(kept))
    assert job.outcome(".", status) == expected


def test_the_board_counts_and_estimates():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    cells = [Cell([f"d={i}"], "", str(i)) for i in range(4)]
    shown = board.Board(cells, 2, console)
    assert shown.left() is None and shown.best() is None
    shown.skip(0, Outcome("finished", -3.0))
    shown.start(1, "GPU 0")
    shown.seconds = [10.0]
    left = shown.left()
    assert left is not None and 10 <= left.total_seconds() <= 15  # one runs, two wait, two slots: (10 + 20) / 2
    console.print(shown.table())
    text = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert "4 runs: 0 finished, 1 skipped, 1 running, 2 waiting" in text
    assert shown.best() == "best val/elbo -3.000: 1/4 d=0"


# --- real runs, as a user types them


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def runs():
    return [json.loads(path.read_text()) for path in sorted(Path("outputs").glob("*/run.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on_when_typed_again(number):
    endless = ["callbacks=[checkpoint]", "logger=none", "trainer.max_epochs=100000"]
    sweeping = start("d=2,3,4", *endless)
    try:
        deadline = time.monotonic() + 120
        while len(list(Path("outputs").glob("*/checkpoints/last.ckpt"))) < 2:
            assert time.monotonic() < deadline and sweeping.poll() is None
            time.sleep(0.2)
        sweeping.send_signal(number)
        said, _ = sweeping.communicate(timeout=90)
    finally:
        if sweeping.poll() is None:
            sweeping.kill()
    assert sweeping.returncode == 128 + number, said
    assert "the same command runs what is not finished" in said and "2 partial, 1 waiting" in said
    assert [run["state"] for run in runs()] == ["partial", "partial"]
    assert not any(Path("/proc", str(run["pid"])).exists() for run in runs())


@pytest.mark.slow
def test_a_sweep_is_typed_again(capfd, monkeypatch):
    """A job that breaks is named at the end; the others finish; the second time starts only what is not finished."""
    arguments = ["train", "-m", "d=2,3", "optimizer.lr=0.001,1e+30", *TINY]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == "error: 2 of 4 runs did not finish"
    said = capfd.readouterr().out
    assert "not finite" in said and "Traceback" not in said and "4 runs: 2 finished, 2 failed" in said
    assert sorted(run["state"] for run in runs()) == ["failed", "failed", "finished", "finished"]
    started, begin = [], pool.start
    monkeypatch.setattr(pool, "start", lambda *a: (started.append(a[0].overrides), begin(*a))[1])
    with pytest.raises(SystemExit):
        main(arguments)
    assert sorted(started) == [[f"d={d}", "optimizer.lr=1e+30", *TINY] for d in (2, 3)]
    main(["train", "-m", "d=2,3", "optimizer.lr=0.001", *TINY])
    assert len(started) == 2 and "2 runs: 0 finished, 2 skipped" in capfd.readouterr().out


def test_hydras_own_options_and_folders_reach_the_jobs(tmp_path):
    sources = [{"provider": "main", "path": "x"}, {"provider": "command-line", "path": "/mine"}]
    told = ["hydra.mode=MULTIRUN", "hydra/launcher=pool", "hydra.launcher.threads=1", "hydra.verbose=true"]
    config = OmegaConf.create({"hydra": {"overrides": {"hydra": told}, "runtime": {"config_sources": sources}}})
    assert job.inherited(config) == ["--config-dir=/mine", "hydra.verbose=true"]
    config.hydra.overrides.hydra.append("hydra.sweep.dir=elsewhere")
    with pytest.raises(ValueError, match=r"hydra.sweep.dir=elsewhere: .* set paths.outputs instead"):
        job.inherited(config)
