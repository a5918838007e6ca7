"""Sweeps on a real Ray: each job is the plain command, and is run again, and continues, when it was lost."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray", reason="needs vae-lab[ray]")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SHORT = ["logger=none", "callbacks=[checkpoint]", "trainer.max_epochs=2", "data.validation=200", "data.test=200"]
LONG = [*SHORT[:2], *SHORT[3:], "trainer.max_epochs=150"]  # long enough to be caught at work


@pytest.fixture(scope="module", autouse=True)
def token(tmp_path_factory):
    """Ray's token, elsewhere than in the user's home: `ray start` then wants it from its clients."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        patch.delenv("RAY_AUTH_MODE", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """`ray start --head` on loopback: its address; two cores, and two GPUs that are only counted."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder = tmp_path_factory.mktemp("ray")
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--num-cpus=2"]
    command += ["--num-gpus=2", "--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}"]
    command += ["--block", "--object-store-memory=100000000"]  # blocks: so its end is the cluster's
    with open(folder / "head.log", "wb") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: head.poll() is not None or "Ray runtime started" in (folder / "head.log").read_text(), 60)
        if head.poll() is not None:
            pytest.skip(f"Ray does not start here: {(folder / 'head.log').read_text()[-500:]}")
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def sweep(folder, *overrides):
    """A sweep's command, at work."""
    command = [sys.executable, "-m", "vae_lab.cli", "train", "-m", *overrides, "hydra/launcher=ray"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(process, seconds=200):
    """All that it prints, once it has ended."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def records(folder):
    """The record of each run, by its folder."""
    return {path.parent: json.loads(path.read_text()) for path in sorted(folder.glob("outputs/*/run.json"))}


def until(true, seconds=120):
    """Waits for what `true` gives, when it is not nothing."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def at_work(folder):
    """The runs that have saved something of themselves."""
    return [run for run in records(folder) if (run / "checkpoints" / "last.ckpt").exists()]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_jobs_share_gpus_on_a_cluster_and_run_once(cluster, tmp_path):
    options = [f"hydra.launcher.address={cluster}", "hydra.launcher.gpus_per_job=0.5", "trainer.accelerator=cpu"]
    first = sweep(tmp_path, "d=2,3", *SHORT, *options)
    text = said(first)
    assert first.returncode == 0, text
    assert [record["state"] for record in records(tmp_path).values()] == ["finished", "finished"]
    again = sweep(tmp_path, "d=2,3", *SHORT, *options)
    text = said(again)
    assert again.returncode == 0 and "2 skipped" in text, text
    assert all((run / "job.log").read_text().count("$ ") == 1 for run in records(tmp_path))


def test_a_lost_worker_s_job_is_run_again_to_the_same_weights(cluster, tmp_path):
    """The oracle is a run that nobody stopped."""
    process = sweep(tmp_path, "d=2", *LONG, f"hydra.launcher.address={cluster}")
    [run] = until(lambda: at_work(tmp_path))
    trainer = json.loads((run / "lock.json").read_text())["pid"]
    worker = int(Path(f"/proc/{trainer}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    text = said(process)
    assert process.returncode == 0, text
    [record] = records(tmp_path).values()
    assert record["state"] == "finished" and record["checkpoint"] == "checkpoints/last.ckpt"
    plain = [sys.executable, "-m", "vae_lab.cli", "train", "d=2", *LONG, "paths.outputs=plain"]
    subprocess.run(plain, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    [oracle] = tmp_path.glob("plain/*")
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(oracle).values(), strict=True))


def test_a_failed_job_leaves_the_others_alone_on_this_machine(tmp_path):
    process = sweep(tmp_path, "optimizer.lr=0.001,1e+30", *SHORT)
    text = said(process)
    states = {record["overrides"][0]: record["state"] for record in records(tmp_path).values()}
    assert process.returncode == 1, text
    assert states == {"optimizer.lr=0.001": "finished", "optimizer.lr=1e+30": "failed"}


def test_ctrl_c_has_the_jobs_save_and_end(cluster, tmp_path):
    process = sweep(tmp_path, "d=2,3", *LONG, f"hydra.launcher.address={cluster}")
    until(lambda: len(at_work(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    text = said(process)
    assert process.returncode == 130, text
    assert [record["state"] for record in records(tmp_path).values()] == ["partial", "partial"]


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    process = sweep(tmp_path, "d=2", *SHORT, "hydra.launcher.address=127.0.0.1:1")
    text = said(process)
    assert process.returncode == 1 and "error: hydra.launcher.address must be a Ray cluster's" in text, text
    assert not records(tmp_path)
