"""Sweeps on a real Slurm: each job is the plain command, and comes back where it was when it was preempted."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("submitit", reason="needs vae-lab[slurm]")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SHORT = ["logger=none", "callbacks=[checkpoint]", "trainer.max_epochs=2", "data.validation=200", "data.test=200"]
LONG = [*SHORT[:2], *SHORT[3:], "trainer.max_epochs=150"]  # long enough to be caught at work


def sweep(slurm, folder, *overrides):
    """A sweep's command, at work."""
    command = [sys.executable, "-m", "vae_lab.cli", "train", "-m", *overrides, "hydra/launcher=slurm"]
    command += ["hydra.launcher.poll_s=0.5", "hydra.launcher.timeout_min=10"]
    return subprocess.Popen(command, cwd=folder, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(process, seconds=200):
    """All that it prints, once it has ended."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def records(folder):
    """The record of each run, by its folder."""
    found = {}
    for path in sorted(folder.glob("outputs/*/run.json")):
        found[path.parent] = json.loads(path.read_text())
    return found


def until(true, seconds=120):
    """Waits for what `true` gives, when it is not nothing."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def at_work(folder):
    """The runs that have saved something of themselves."""
    return [run for run, record in records(folder).items() if (run / "checkpoints" / "last.ckpt").exists()]


def queue(slurm):
    """The jobs that are there, and their states."""
    listed = subprocess.run(["squeue", "-h", "-o", "%i %T"], env=slurm, capture_output=True, text=True, check=True)
    return dict(line.split() for line in listed.stdout.splitlines())


def starts(run):
    """How often the run's job was started."""
    return sum(line.startswith("$ ") for line in (run / "job.log").read_text().splitlines())


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_sweep_is_an_array_and_is_run_once(slurm, tmp_path):
    first = sweep(slurm, tmp_path, "d=2,3", *SHORT)
    text = said(first)
    assert first.returncode == 0, text
    assert [record["state"] for record in records(tmp_path).values()] == ["finished", "finished"]
    numbers = sorted(path.read_text() for path in tmp_path.glob("outputs/.slurm/*.job"))
    array = numbers[0].partition("_")[0]
    assert numbers == [f"{array}_0", f"{array}_1"]
    again = sweep(slurm, tmp_path, "d=2,3", *SHORT)
    text = said(again)
    assert again.returncode == 0 and "2 skipped" in text, text
    assert [starts(run) for run in records(tmp_path)] == [1, 1]


def test_a_failed_job_leaves_the_others_alone(slurm, tmp_path):
    process = sweep(slurm, tmp_path, "optimizer.lr=0.001,1e+30", *SHORT)
    text = said(process)
    states = {record["overrides"][0]: record["state"] for record in records(tmp_path).values()}
    assert states == {"optimizer.lr=0.001": "finished", "optimizer.lr=1e+30": "failed"} and process.returncode == 1, (
        text
    )


@pytest.mark.parametrize("how", [["scancel", "--signal=USR2"], ["scontrol", "requeue"]], ids=["signal", "requeue"])
def test_a_preempted_job_comes_back_to_the_same_weights(slurm, tmp_path, how):
    """By the signal before a time limit, and as Slurm does it itself; the oracle is a run that nobody stopped."""
    process = sweep(slurm, tmp_path, "d=2", *LONG)
    [run] = until(lambda: at_work(tmp_path))
    [number] = queue(slurm)
    subprocess.run([*how, number], env=slurm, check=True)
    text = said(process)
    assert process.returncode == 0, text
    [record] = records(tmp_path).values()
    assert record["state"] == "finished" and starts(run) == 2 and record["checkpoint"] == "checkpoints/last.ckpt"
    plain = [sys.executable, "-m", "vae_lab.cli", "train", "d=2", *LONG, "paths.outputs=plain"]
    subprocess.run(plain, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    [oracle] = tmp_path.glob("plain/*")
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(oracle).values(), strict=True))


def test_a_job_that_comes_back_too_often_is_left_partial(slurm, tmp_path):
    process = sweep(slurm, tmp_path, "d=2", *LONG, "hydra.launcher.max_requeues=0")
    until(lambda: at_work(tmp_path))
    subprocess.run(["scancel", "--signal=USR2", *queue(slurm)], env=slurm, check=True)
    text = said(process)
    assert process.returncode == 1 and "not requeued" in text, text
    assert [record["state"] for record in records(tmp_path).values()] == ["partial"]


def test_ctrl_c_cancels_the_jobs_which_save_first(slurm, tmp_path):
    process = sweep(slurm, tmp_path, "d=2,3", *LONG)
    until(lambda: len(at_work(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    text = said(process)
    assert process.returncode == 130, text
    until(lambda: not queue(slurm))
    assert [record["state"] for record in records(tmp_path).values()] == ["partial", "partial"]


def test_a_job_that_is_still_queued_is_not_submitted_again(slurm, tmp_path):
    first = sweep(slurm, tmp_path, "d=2", *LONG)
    [run] = until(lambda: at_work(tmp_path))
    first.kill()
    first.wait()
    again = sweep(slurm, tmp_path, "d=2", *LONG)
    text = said(again)
    assert again.returncode == 0 and starts(run) == 1, text


def test_the_processes_of_a_run_may_be_slurms(slurm, tmp_path):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores")
    two = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=40"]
    process = sweep(slurm, tmp_path, "d=2", *LONG[:-1], *two, "hydra.launcher.tasks_per_node=2")
    [run] = until(lambda: at_work(tmp_path))
    subprocess.run(["scancel", "--signal=USR2", *queue(slurm)], env=slurm, check=True)
    text = said(process)
    assert process.returncode == 0, text
    [record] = records(tmp_path).values()
    assert record["state"] == "finished" and record["checkpoint"] == "checkpoints/last.ckpt" and starts(run) == 4
