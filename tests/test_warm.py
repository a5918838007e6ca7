"""Processes that are forked of a warm server: each is what a fresh one is, and nobody else's affair."""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vae_lab.launch import job, pool, warm
from vae_lab.launch.warm import Server
from vae_lab.runs import record

ROOT = Path(__file__).parents[1]
TINY = ["trainer.max_epochs=1", "callbacks=[checkpoint]", "logger=none"]
THREADS = 2

ERRANDS = """
import atexit, ctypes, gc, json, multiprocessing, os, random, signal, sys, time

def nothing(): pass
def number(): return 3
def who(a, b): return a + b, "pytest" in sys.modules
def leaves(): sys.exit(7)
def words(): sys.exit("its last words")
def breaks(): raise ValueError("what was wrong")
def interrupted(): raise KeyboardInterrupt
def at_once(): os._exit(9)
def killed(): os.kill(os.getpid(), signal.SIGKILL)
def crashes(): ctypes.string_at(0)
def told(): os.kill(os.getpid(), signal.SIGTERM)
def later(): atexit.register(print, "at last")
def sleeps(seconds): time.sleep(seconds)

def facts(file):
    import vae_lab.launch.preloaded, numpy, torch, wandb
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from wandb.sdk.data_types._private import MEDIA_TMP
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import runid
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)
    own = {
        "session": os.getsid(0) == os.getpid(),
        "random": [random.random(), float(numpy.random.rand()), float(torch.rand(())), runid.generate_id()],
        "folders": [MEDIA_TMP.name, wandb.Artifact._TMP_DIR.name],
        "there": [os.path.isdir(MEDIA_TMP.name), os.path.isdir(wandb.Artifact._TMP_DIR.name)],
        "frozen": gc.get_freeze_count() > 0,
        "alone": len(os.listdir("/proc/self/task")) == 1,
    }
    common = {
        "environment": {k: v for k, v in os.environ.items() if k not in ("LINES", "COLUMNS", "PYTEST_CURRENT_TEST")},
        "folder": os.getcwd(), "path": sys.path, "input": sys.stdin.read(),
        "process": [multiprocessing.current_process().name, len(multiprocessing.active_children())],
        "handlers": [str(signal.getsignal(s)).partition(" at ")[0] for s in signals],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "collects": gc.isenabled(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "GPU": torch.cuda.is_initialized(), "W&B": wandb_setup._singleton is None,
        "method": multiprocessing.get_start_method(),
        "hydra": [GlobalHydra.instance().is_initialized(), Plugins in Singleton._instances],
        "encoding": [sys.stdout.encoding, sys.stdout.write_through],
    }
    with open(file, "w") as where:
        json.dump({"own": own, "common": common}, where)

if __name__ == "__main__":
    facts(sys.argv[1])
"""


@pytest.fixture(scope="module")
def errands(tmp_path_factory):
    """A module of the user's in the working directory: what the processes do."""
    folder, before = tmp_path_factory.mktemp("errands"), Path.cwd()
    (folder / "errands.py").write_text(ERRANDS)
    os.chdir(folder)
    sys.path.append(str(folder))
    yield importlib.import_module("errands")
    sys.path.remove(str(folder))
    os.chdir(before)


@pytest.fixture(scope="module")
def server(errands):
    with Server(THREADS) as server:
        yield server


def run(server, work, *arguments):
    """The exit status of a process, and what it has said."""
    log = Path(f"{work.__name__}.log").absolute()
    log.write_text("before\n")
    status = server.start(work, arguments, log, job.environment(threads=THREADS)).wait()
    return status, log.read_text().removeprefix("before\n")


# --- each is like a fresh process


ENDS = "nothing number leaves words breaks interrupted at_once killed crashes told later"


@pytest.mark.parametrize("name", ENDS.split())
def test_it_ends_as_a_fresh_process_does(server, errands, name):
    code = f"import sys, errands; sys.exit(errands.{name}())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    status, said = run(server, getattr(errands, name))
    assert status == fresh.returncode
    assert said.splitlines()[-1:] == (fresh.stdout + fresh.stderr).splitlines()[-1:]


def facts(server, errands, env, file):
    """What a process finds: what is its own, and what every such process finds."""
    status = server.start(errands.facts, (file,), Path("facts.log"), env).wait()
    assert status == 0, Path("facts.log").read_text()
    return json.loads(Path(file).read_text()).values()


def check_as_fresh(found, env):
    """What is found is what a fresh process of the plain command's kind finds."""
    words = [sys.executable, "-m", "errands", "fresh.json"]
    subprocess.run(words, env=env, check=True, timeout=60, start_new_session=True, stdin=subprocess.DEVNULL)
    fresh = json.loads(Path("fresh.json").read_text())["common"]
    own, its = found.pop("path"), fresh.pop("path")
    assert own[0] == its[0] and set(its) <= set(own)  # pytest has added some
    assert found == fresh


def test_it_is_what_a_fresh_process_is(server, errands, monkeypatch):
    """Though it is forked, and not of this process: of its environment, paths, handlers, threads, and so on."""
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/elsewhere")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    env = job.environment([3], THREADS) | {"MINE": "1"}
    a, _ = facts(server, errands, job.environment([0], THREADS), "a.json")
    b, common = facts(server, errands, env, "b.json")
    assert server.environment is not None
    assert common["threads"][0] == THREADS and common["environment"]["CUDA_VISIBLE_DEVICES"] == "3"
    check_as_fresh(common, env)
    for own in (a, b):
        assert own["session"] and own["frozen"] and own["alone"] and all(own["there"])
        assert not any(Path(folder).exists() for folder in own["folders"])  # it has removed them
    assert not set(map(str, a["random"] + a["folders"])) & set(map(str, b["random"] + b["folders"]))


def test_where_there_is_another_server_each_is_a_fresh_process(server, errands):
    server.prepare()
    with Server(THREADS) as second:
        env = job.environment(threads=THREADS)
        _, common = facts(second, errands, env, "spawned.json")
        assert second.environment is None and not second.forks
        assert run(second, errands.breaks)[0] == 1
    check_as_fresh(common, env)
    assert run(server, errands.number)[0] == 3  # which has not been ended


def test_what_is_called_there_comes_back(server, errands):
    assert server.call(errands.who, 1, 2) == (3, False)
    with Server(THREADS) as second:  # there is one already
        assert second.call(errands.who, 1, 2) == (3, True)


def test_what_breaks_there_breaks_here(server, errands):
    with pytest.raises(ValueError, match="what was wrong"):
        server.call(errands.breaks)
    assert server.call(errands.who, 1, 2) == (3, False)


def test_what_is_ended_there_is_not_tried_here(server, errands):
    with pytest.raises(ChildProcessError, match="maybe for lack of memory"):
        server.call(errands.killed)
    assert server.call(errands.who, 1, 2) == (3, False)


# --- and nobody else's affair


def test_what_becomes_of_one_reaches_no_other(server, errands):
    env, log = job.environment(threads=THREADS), Path("sleeps.log")
    sleeping = server.start(errands.sleeps, (3600,), log, env)
    for name in ("breaks", "at_once", "killed", "crashes"):
        run(server, getattr(errands, name))
    assert sleeping.poll() is None
    os.killpg(sleeping.pid, signal.SIGTERM)
    assert sleeping.wait() == -signal.SIGTERM == sleeping.poll()


def test_a_server_that_is_killed(server, errands):
    """Its processes go on, and the next one has a new server."""
    sleeping = server.start(errands.sleeps, (3600,), Path("sleeps.log"), job.environment(threads=THREADS))
    os.kill(warm._server._forkserver_pid, signal.SIGKILL)
    time.sleep(0.5)
    assert sleeping.poll() is None
    os.killpg(sleeping.pid, signal.SIGTERM)
    assert sleeping.wait() not in (0, None)
    assert run(server, errands.number)[0] == 3


def test_nothing_is_started_for_nothing():
    with Server(1) as server:
        assert server.environment is None


def test_a_server_that_has_looked_at_the_gpus_is_not_forked(errands):
    """Which a library may do when it is imported."""
    Path("looks.py").write_text("import torch; torch.cuda._is_in_bad_fork = lambda: True")
    warm._server._stop()
    with Server(1, ["looks"]) as server:
        assert run(server, errands.number) == (3, "")
        assert server.environment is not None and not server.forks


# --- the jobs of a sweep


def test_what_is_not_one_process_of_ours_is_not_forked():
    plain = job.command(["d=2", "hydra.verbose=true"])
    assert pool.forkable(plain)
    assert not pool.forkable(["python", "job.py", "d=2"])
    for word in ("trainer=ddp", "trainer.devices=2", "trainer.strategy=ddp", "+trainer.num_nodes=2"):
        assert not pool.forkable([*plain, word])


MINE = """
import torch
from vae_lab.distributions import IsotropicNormal
from vae_lab.interfaces import Likelihood

class Mine(Likelihood):
    support = torch.distributions.constraints.real

    def __init__(self, shape):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, eta):
        return IsotropicNormal(eta, torch.tensor(0.1), len(self.shape))
"""


def environment(**more):
    return os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"} | more


def marked(word):
    """The processes with `word` in their environment, and the commands they have."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if word in path.read_bytes().decode(errors="replace").split("\0"):
                found[int(path.parent.name)] = (path.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def only_left(word, *pids):
    """Waits until no other processes have `word` in their environment than these."""
    until = time.monotonic() + 30
    while (found := set(marked(word)) - set(pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not found, {pid: marked(word).get(pid) for pid in found}


@pytest.mark.slow
def test_a_job_comes_to_the_same_however_it_is_started(tmp_path):
    """Bit by bit; with a component of the user's that is in the working directory alone."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "likelihood").mkdir(parents=True)
    (tmp_path / "conf" / "likelihood" / "mine.yaml").write_text("_target_: mine.Mine\nshape: ${data.shape}\n")
    words = [sys.executable, "-m", "vae_lab.cli", "train", "--config-dir=conf", "-m", "likelihood=mine,gaussian"]
    words += ["trainer.max_epochs=2", "callbacks=[checkpoint,pictures]", "hydra.launcher.threads=1"]
    for how, warm_or_not in (("warm", "true"), ("cold", "false")):
        more = [f"paths.outputs={how}", f"hydra.launcher.warm={warm_or_not}"]
        env = environment(WHOSE=f"{tmp_path}")
        done = subprocess.run([*words, *more], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        only_left(f"WHOSE={tmp_path}")
    runs = sorted(path.name for path in tmp_path.glob("warm/*-*"))
    assert len(runs) == 2
    for run in runs:
        a, b = (torch.load(tmp_path / how / run / "checkpoints" / "last.ckpt") for how in ("warm", "cold"))
        assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
        assert a["position"]["noise"].equal(b["position"]["noise"])
        logs = [(tmp_path / how / run / "job.log").read_text().splitlines() for how in ("warm", "cold")]
        assert [line.replace("warm/", "cold/") for line in logs[0][1:]] == logs[1][1:] and len(logs[1]) > 5
        assert all(log[0].startswith(f"$ {sys.executable} -m vae_lab.cli train --config-dir=") for log in logs)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_sweep(tmp_path, number):
    """A terminal's Ctrl-C is for all of its processes at once; a kill is for one, whose jobs go on."""
    whose = f"WHOSE={tmp_path}"
    words = [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", "d=2,3", "callbacks=[checkpoint]", "logger=none"]
    words += ["trainer.max_epochs=100000", "hydra.launcher.threads=1"]
    with open(tmp_path / "said.txt", "w") as said:
        sweep = subprocess.Popen(
            words, cwd=tmp_path, env=environment(WHOSE=f"{tmp_path}"), stdout=said, stderr=said, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        n = min(2, len(os.sched_getaffinity(0)))
        while len(runs := list(tmp_path.glob("outputs/*/checkpoints/last.ckpt"))) < n:
            assert time.monotonic() < until and sweep.poll() is None
            time.sleep(0.2)
        assert any("forkserver" in command for command in marked(whose).values())
        (sweep.send_signal if number == signal.SIGKILL else lambda n: os.killpg(sweep.pid, n))(number)
        status = sweep.wait(90)
        if number == signal.SIGKILL:
            pids = [record.alive(path.parents[1])["pid"] for path in runs]
            tracker = [pid for pid, command in marked(whose).items() if "resource_tracker" in command]
            only_left(whose, *pids, *tracker)  # the tracker of shared memory is the jobs' too
            assert set(pids) <= set(marked(whose))
            for pid in pids:
                os.killpg(pid, signal.SIGTERM)
        else:
            assert status == 128 + number, (tmp_path / "said.txt").read_text()
            assert {record.state(path.parents[1]) for path in runs} == {"partial"}
            assert "Traceback" not in (tmp_path / "said.txt").read_text()
        only_left(whose)
    finally:
        for pid in marked(whose):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_of_several_processes_may_be_forked_too(tmp_path, monkeypatch):
    """As where only an option of the user's says that it is of several."""
    monkeypatch.chdir(tmp_path)
    both = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", *TINY]
    with Server(1) as server:
        job_log = tmp_path / "job.log"
        status = server.start(pool.repeat, (["train", *both],), job_log, job.environment(threads=1)).wait()
    assert status == 0, job_log.read_text()
    [run] = tmp_path.glob("outputs/*/run.json")
    assert record.state(run.parent) == "finished"


def test_who_asked_for_a_process_may_have_ended(server, errands, capfd):
    """As by a Ctrl-C while a sweep is planned."""
    ready, told = multiprocessing.Pipe(duplex=False)
    ready.close()
    process = multiprocessing.get_context("fork").Process(target=warm.begin, args=(told, errands.nothing, (), None, {}))
    process.start()
    process.join(60)
    assert process.exitcode == 1 and not capfd.readouterr().err
