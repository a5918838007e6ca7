"""A real Slurm of one node on loopback: munged, slurmctld and slurmd, for the time of the tests and in their folder."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

DAEMONS = ["munged", "slurmctld", "slurmd"]

CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port_of_node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=10
MinJobAge=300
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(true, what, seconds):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def slurm(cluster):
    """The environment of a process that uses the cluster, whose queue is empty."""
    yield cluster
    subprocess.run(["scancel", "--me"], env=cluster, check=False, timeout=30)
    listed = ["squeue", "--me", "--noheader"]
    wait_until(lambda: not subprocess.run(listed, env=cluster, capture_output=True, timeout=30).stdout, "empty", 60)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The environment of a process that uses the cluster; skips where one cannot be started."""
    absent = [name for name in [*DAEMONS, "sbatch"] if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if absent:
        pytest.skip(f"Slurm is not installed: no {', '.join(absent)} (Debian: slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own has to be started by root")
    # short, as the socket's path must be; munged wants it traversable
    folder = Path(tmp_path_factory.mktemp("slurm"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            port=free_port(),
            port_of_node=free_port(),
            cpus=os.cpu_count(),
        )
    )
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin:/usr/bin"}
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]  # fmt: skip
    processes = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "wb") as out:
                processes.append(subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists, "munged's socket", 10)

        def idle():
            asked = subprocess.run(
                ["sinfo", "--noheader", "--format=%T"], env=env, capture_output=True, text=True, check=False, timeout=30
            )
            return asked.stdout.strip() == "idle"

        try:
            wait_until(idle, "an idle node", 40)
        except AssertionError:
            said = "\n".join(path.read_text(errors="replace")[-500:] for path in sorted(folder.glob("*.log")))
            pytest.skip(f"Slurm is installed but does not start here: {said}")
        yield env
    finally:
        subprocess.run(["scancel", "--full", "--signal=KILL", "--me"], env=env, check=False, timeout=30)
        time.sleep(1)
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
