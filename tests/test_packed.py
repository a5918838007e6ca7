"""Sweeps whose runs are trained as one: each is a run like any other, and comes to what it would have come to."""

import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from test_train import ROOT, command, runs_in, without_account

from vae_lab.cli import register_resolvers
from vae_lab.launch.board import Board
from vae_lab.launch.limits import cores
from vae_lab.launch.packed import PROCESS, RUN, Group, Packed, Run, kind_of, needs, outcome
from vae_lab.launch.plan import Cell
from vae_lab.launch.pool import Slot, Sweep
from vae_lab.launch.warm import Server
from vae_lab.runs import identity, read_config, record

SMALL = ["encoder.hidden=[16]", "decoder.hidden=[16]", "callbacks=[checkpoint]", "data.validation=100"]
QUICK = [*SMALL, "trainer.max_epochs=3", "logger=none"]
LONG = [*SMALL, "trainer.max_epochs=200", "logger=none", "callbacks.checkpoint.every_seconds=0.2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_account(monkeypatch)


def sweep(*words, launcher="packed", outputs="outputs", **env):
    """A sweep's command, to its end."""
    words = ["-m", *words, f"hydra/launcher={launcher}", f"paths.outputs={outputs}"]
    return command(str(ROOT / "scripts" / "train.py"), *words, **env)


def by_fingerprint(outputs):
    return {record.read(run)["fingerprint"]: run for run in runs_in(outputs)}


def rows(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def log(run):
    return (run / "job.log").read_text()


def equal(run, other, rtol):
    """Whether two runs logged the same, and have the same weights."""
    one, two = rows(run), rows(other)
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for a, b in zip(one, two, strict=True):
        a.pop("train/images_per_second", None)
        assert a == pytest.approx({k: b[k] for k in a}, rel=rtol, abs=rtol)
    ours, theirs = weights(run), weights(other)
    for name, v in theirs.items():
        torch.testing.assert_close(ours[name], v, rtol=rtol, atol=rtol)


# --- which runs are trained as one


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def kinds(*sets):
    return [kind_of(composed(*words)) for words in sets]


@pytest.mark.parametrize(
    "other",
    [
        "seed=1",
        "d=5",
        "likelihood.s2=0.5",
        "objective.beta=4.0",
        "objective.beta=4",  # which is no whole number by default
        "likelihood.s2=2",
        "optimizer.lr=0.1",
        "trainer.max_epochs=3",
        "logger=none",
    ],
)
def test_runs_that_differ_in_numbers_alone_are_of_a_kind(other):
    one, two = kinds([], [other])
    assert one == two is not None


@pytest.mark.parametrize(
    "other",
    [
        "objective.V=2",
        "encoder.hidden=[8]",
        "encoder=linear",
        "data.validation=7",
        "sampling.batch_size=7",
        "optimizer=sgd",
        "trainer.gradient_clip_val=1",
        "schedule=cosine",
        "preprocessing=dequantised",
    ],
)
def test_runs_that_differ_otherwise_are_not(other):
    one, two = kinds([], [other])
    assert one != two and two is not None


@pytest.mark.parametrize("words", [["objective.kl=monte_carlo"], ["objective=iwae"], ["prior=vamp"]])
def test_d_may_differ_only_where_more_of_it_does_nothing(words):
    one, two = kinds([*words, "d=2"], [*words, "d=3"])
    assert one != two
    one, two = kinds([*words, "seed=2"], [*words, "seed=3"])
    assert one == two


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("engine=eager", "engine=eager"),
        ("encoder=free", "encoder=free has parameters of single data"),
        ("trainer=ddp", "each has several processes"),
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16-mixed"),
        ("objective.V=8", "a step of 4.4e+08 operations fills a core (hydra.launcher.flops)"),
        ("encoder=linear,mlp", "no other is left that differs in numbers alone"),
    ],
)
def test_some_runs_are_trained_alone_and_it_is_said_why(word, why):
    key, _, values = word.partition("=")
    words = [f"{key}={value}" for value in values.split(",")]
    two = [composed("encoder=mlp", f"seed={i}", words[i % len(words)]) for i in range(2)]
    said = list[str]()
    assert Packed().groups(dict(enumerate(two)), [Slot(None, 1)], say=said.append) == []
    assert said == [f"[cyan]alone[/cyan]    2 of 2 runs: {why}"]


@pytest.mark.parametrize(
    ("words", "pays"),
    [([], True), (["objective.V=4"], True), (["objective.V=64"], False), (["sampling.batch_size=1000"], False)],
)
def test_runs_are_packed_where_that_was_measured_to_pay(words, pays):
    w5 = [
        "encoder=mlp",
        "decoder=mlp",
        "encoder.hidden=[128]",
        "decoder.hidden=[128]",
        "d=8",
        "sampling.batch_size=100",
    ]
    runs = {i: composed(f"seed={i}", *w5, *words) for i in range(2)}
    assert Packed().groups(runs, [Slot(None, 1)]) == ([[0, 1]] if pays else [])


def test_groups_fill_the_slots_and_are_no_larger_than_they_may_be():
    runs = {i: composed(f"seed={i}", *SMALL) for i in range(7)}
    runs[7] = composed("encoder=linear")
    cpu = Slot(None, 1)
    assert Packed().groups(runs, [cpu]) == [[0, 1, 2, 3, 4, 5, 6]]
    assert Packed().groups(runs, [cpu, cpu]) == [[0, 2, 4, 6], [1, 3, 5]]
    assert Packed(size=3).groups(runs, [cpu]) == [[0, 3, 6], [1, 4], [2, 5]]
    [need] = needs([runs[0]])
    assert Packed(flops=need.flops - 1).groups(runs, [cpu]) == []  # it does not pay
    assert len(Packed(flops=0).groups(runs, [Slot([0], 1)])) == 1  # on a GPU it does


@pytest.mark.parametrize(("most", "groups"), [(7, 1), (4, 2), (3, 3), (1, 0), (0, 0)])
def test_groups_are_no_larger_than_there_is_memory_for(most, groups, monkeypatch):
    runs = {i: composed(f"seed={i}", *SMALL) for i in range(7)}
    [need] = needs([runs[0]])
    memory = PROCESS + most * (RUN + need.memory)
    monkeypatch.setattr("vae_lab.launch.packed.share", lambda slots: memory)
    found = Packed().groups(runs, [Slot(None, 1)])
    assert len(found) == groups and all(len(group) <= most for group in found)


def test_what_cannot_be_tried_is_packed_with_none():
    def ended(function, *arguments):
        raise ChildProcessError

    assert Packed().groups({i: composed(f"seed={i}", *SMALL) for i in range(2)}, [Slot(None, 1)], ended) == []


def test_what_is_needed_is_told_without_torch():
    told = pickle.dumps(needs([composed(*SMALL)]))
    code = f"import pickle, sys; [need] = pickle.loads({told!r}); assert need.flops and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_data_and_noise_take_memory_up_to_their_room():
    def memory(*words):
        return needs([composed(*SMALL, *words)])[0].memory

    noise = 100 * 100 * 2 * 4  # bytes, of a sample of a block's data, for d = 2
    assert memory("objective.V=3", "d=2") - memory("objective.V=2", "d=2") > noise
    room = 2 * 2**24  # of a block's noise, which is kept twice
    assert memory("objective.V=200", "d=2", "sampling.block=1000") < memory("objective.V=200", "d=2") + room
    static, dynamic, more = (
        memory(f"preprocessing=binarised_{kind}", *words)
        for kind, *words in (("static",), ("dynamic",), ("dynamic", "sampling.block=1000"))
    )
    assert dynamic - static == 2 * 100 * 100 * 64 * 4  # two blocks, which lie nowhere else
    assert more < static + 2 * 2**24 + 2 * 2**24  # neither data nor noise take more than their room


def test_a_step_that_cannot_be_made_is_packed_with_none():
    runs = {i: composed(f"seed={i}", "objective=iwae", "likelihood=gaussian_optimal") for i in range(2)}
    [why], said = needs([runs[0]]), list[str]()
    assert why.startswith("ValueError: ")
    assert Packed().groups(runs, [Slot(None, 1)], say=said.append) == []
    assert said == [f"[cyan]alone[/cyan]    2 of 2 runs: {why}"]


def test_the_operations_of_a_step_are_those_of_its_products():
    D, h, d, B = 64, 16, 2, 100
    [need] = needs([composed(*SMALL, "d=2")])
    # forwards, and backwards to weights and inputs; nothing asks for the gradient of x
    assert need.flops == 2 * B * (3 * (D * h + h * 2 * d + d * h + h * D) - D * h)


def test_the_options_are_the_constructors():
    options = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / "packed.yaml")
    assert options.pop("_target_") == "hydra_plugins.vae_lab.packed.PackedLauncher"
    assert options == {name: p.default for name, p in inspect.signature(Packed).parameters.items()}


@pytest.mark.parametrize(("engine", "steps"), [("auto", 7), ("compiled", 0)])
def test_who_asks_for_compiled_steps_has_them_however_few(engine, steps, tmp_path, monkeypatch):
    class Told(Exception):
        pass

    def start(server, work, arguments, log, env):
        raise Told(arguments[1])

    monkeypatch.setattr("vae_lab.launch.warm.Server.start", start)
    run = Run(composed(f"engine={engine}"), OmegaConf.create(), [], tmp_path / "job.log")
    with pytest.raises(Told, match=f"^{steps}$"):
        Group(Sweep([Cell([], str(tmp_path), "0")], [], Board([], 1), Server(1)), {0: run}, 7).start(Slot(None, 1))


# --- sweeps


def test_a_packed_run_is_a_run_like_any_other():
    """Also where d differs; finished in a pack, it is finished for the pool, and the other way round."""
    cells = [*SMALL, "trainer.max_epochs=3", "d=2,3", "likelihood.s2=0.1,0.5"]
    done = sweep(*cells)
    assert done.returncode == 0 and done.stdout.count("CPU, one of ") == 4, done.stdout + done.stderr
    alone = sweep(*cells, launcher="pool", outputs="alone")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    packed, others = by_fingerprint("outputs"), by_fingerprint("alone")
    assert packed.keys() == others.keys() and len(packed) == 4
    for name, run in packed.items():
        equal(run, others[name], 1e-4)
        assert "runs that are packed" in log(run)
        assert log(run).startswith(f"$ {sys.executable} -m vae_lab.cli train ") and "test/elbo" in log(run)
        kept = [json.loads((r / "run.json").read_text()) for r in (run, others[name])]
        for a in kept:
            assert a["state"] == "finished"
        assert kept[0]["overrides"] == [o.replace("alone", "outputs") for o in kept[1]["overrides"]]
        assert {p.name for p in run.iterdir()} == {p.name for p in others[name].iterdir()}
        [folder] = record.wandb_folders(run)  # a W&B run of its own
        assert folder.name.endswith(name)
    for launcher in ("pool", "packed"):
        again = sweep(*cells, launcher=launcher)
        assert again.returncode == 0 and "4 runs: 0 finished, 4 skipped" in again.stdout, again.stdout
    assert all(log(run).count("$ ") == 1 for run in packed.values())


def test_a_run_that_breaks_stops_alone():
    done = sweep(*QUICK, "optimizer.lr=0.001,1e30,0.002")
    assert done.returncode == 1 and "3 runs: 2 finished, 1 failed" in done.stdout, done.stdout + done.stderr
    states = {run: record.read(run) for run in runs_in("outputs")}
    [broken] = [run for run, known in states.items() if known["state"] == "failed"]
    assert "optimizer.lr=1e+30" in states[broken]["overrides"] or "optimizer.lr=1e30" in states[broken]["overrides"]
    assert states[broken]["error"].startswith("FloatingPointError: ")
    assert "not finite at step" in log(broken) and "Traceback" not in log(broken)


def test_what_is_in_no_group_is_a_job_of_the_pool():
    """It waits for a slot, and not for the groups."""
    done = sweep(*QUICK, "trainer.precision=32-true,64-true", "seed=1,2")
    assert done.returncode == 0 and "4 runs: 4 finished" in done.stdout, done.stdout + done.stderr
    alone, *events = (line.split() for line in done.stdout.splitlines())
    assert " ".join(alone) == "alone 2 of 4 runs: trainer.precision=64-true"
    begun = 3 if cores() > 1 else 2
    assert [event[0] for event in events[:begun]] == ["starts"] * begun
    assert sum("packed" in event for event in events) == 2


def test_runs_that_cannot_be_stacked_are_jobs_of_the_pool():
    """Nothing of them has begun before."""
    cells = [*SMALL, "trainer.max_epochs=2", "likelihood=gaussian_optimal", "seed=1,2"]  # scores by the whole batch
    why = "not packed, as a model in the stack is not the same as alone"
    done = sweep(*cells)
    assert done.returncode == 0 and "2 runs: 2 finished" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count(f": {why}\n") == 2 and done.stdout.count("starts") == 4
    for run in runs_in("outputs"):
        assert f"engine: {why}: a job of its own\n$ " in log(run)
        assert record.read(run)["attempts"] == 1 and len(record.wandb_folders(run)) == 1
    assert len(list(record.wandb_folders(run)[0].parent.glob("offline-run-*"))) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["d=2,4", "objective.V=${d}"], "not packed, as they differ in the number of samples"),
        (["seed=10,20", "sampling.batch_size=${seed}"], "not packed, as they differ in the size of a batch"),
    ],
)
def test_runs_that_differ_by_way_of_a_number_are_trained_nonetheless(words, why):
    done = sweep(*QUICK, *words)
    assert done.returncode == 0 and "2 runs: 2 finished" in done.stdout, done.stdout + done.stderr
    assert all(why in log(run) for run in runs_in("outputs"))


def test_a_run_ends_where_its_record_says_so_since_the_group_began(tmp_path):
    cell = Cell([], str(tmp_path))
    begin = partial(record.begin, tmp_path, "0" * 12, [])
    assert outcome(cell, {}, None) is None and outcome(cell, {}, 0) is None
    assert outcome(cell, {}, -signal.SIGKILL).state == "failed"
    for state, error in (("failed", "as before"), ("finished", None), ("partial", "pruned")):
        begin()
        record.end(tmp_path, state, 1.0, value=-3.0, error=error)
        before = record.read(tmp_path)
        assert outcome(cell, {}, None).state == ("failed" if state == "failed" else "finished")
        assert outcome(cell, before, None) is None and outcome(cell, before, 0) is None  # it is yet to begin
        assert outcome(cell, before, 128 + signal.SIGTERM).state == "partial"
        begin()
        assert outcome(cell, before, None) is None
        record.end(tmp_path, "finished", 2.0, value=-1.0)
        assert outcome(cell, before, None).value == -1.0
    begin()
    record.end(tmp_path, "partial", 1.0)  # by a signal, which ends the process too
    assert outcome(cell, {}, None) is None and outcome(cell, {}, 128 + signal.SIGTERM).state == "partial"


@pytest.mark.slow
def test_a_member_that_stops_early_leaves_the_others():
    cells = [*QUICK, "trainer.max_epochs=6", "callbacks=[checkpoint,early_stopping]", "optimizer.lr=1e-7,1e-3,2e-3"]
    cells += ["callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=1"]
    for launcher in ("packed", "basic"):
        done = sweep(*cells, launcher=launcher, outputs=launcher)
        assert done.returncode == 0, done.stdout + done.stderr
    alone, epochs = by_fingerprint("basic"), {}
    for name, run in by_fingerprint("packed").items():
        assert "one of 3 runs that are packed" in log(run)
        equal(run, alone[name], 1e-4)
        epochs[read_config(run)["optimizer"]["lr"]] = sum("val/elbo" in row for row in rows(run))
    assert epochs == {1e-7: 3, 1e-3: 6, 2e-3: 6}


@pytest.mark.slow
def test_the_trials_of_a_study_are_packed_and_pruned():
    """A trial that is pruned is done: the pool does not train it on."""
    search = ["hydra/sweeper=optuna", "hydra.sweeper.study=s", "hydra.sweeper.sampler=qmc", "hydra.sweeper.n_trials=3"]
    search += ["hydra.sweeper.pruner=hyperband", "optimizer.lr=tag(log,interval(1e-5,1e-2))"]
    done = sweep(*QUICK, *search, "hydra.sweeper.n_jobs=3")
    assert done.returncode == 0, done.stdout + done.stderr
    storage = JournalStorage(JournalFileBackend("outputs/s.journal"))
    trials = optuna.load_study(study_name="s", storage=storage).trials
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert len(trials) == 3 and 0 < len(pruned) < 3
    for trial in trials:
        run = Path("outputs") / trial.user_attrs["run"]
        epochs = trial.user_attrs["pruned"] if trial in pruned else 3
        assert record.state(run) == ("partial" if trial in pruned else "finished")
        assert log(run).count("$ ") == 1 and "one of 3 runs that are packed" in log(run)
        assert sum("val/elbo" in row for row in rows(run)) == len(trial.intermediate_values) == epochs


def test_the_sweeps_flag_may_stand_between_overrides():
    done = command(str(ROOT / "scripts" / "train.py"), "d=0", "-m", "seed=1,2", "logger=none")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cell 1 of 2 (d=0 seed=1 logger=none): d must be a whole number >= 1, got 0" in done.stderr


def started(*words):
    words = ["-m", *words, "hydra/launcher=packed"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def saved():
    """The runs that have saved something, once both have."""
    found = [run for run in runs_in("outputs") if (run / "checkpoints" / "last.ckpt").exists()]
    return found if len(found) == 2 else []


@pytest.mark.slow
def test_a_group_does_not_wait_for_another_process():
    words = [*QUICK, "seed=1"]
    with record.claim(identity.folder("outputs", words, identity.fingerprint(composed(*words)))):
        process = started(*QUICK, "seed=1,2,3", "wait=true")
        until(lambda: [record.state(run) for run in runs_in("outputs")] == ["finished"] * 2)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "3 runs: 3 finished" in text and text.count("one of 2 that are packed") == 2, (
        text
    )


@pytest.mark.slow
def test_a_pack_that_is_killed_goes_on_to_the_same_bits():
    # never compiled: else it would be from when on another process has, which may be in between
    cells = [*LONG, "seed=1,2", "hydra.launcher.steps=1000000"]
    whole = sweep(*cells, outputs="whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    first = started(*cells)
    runs = until(saved)
    time.sleep(0.5)
    pack = json.loads((runs[0] / "lock.json").read_text())["pid"]
    assert pack == json.loads((runs[1] / "lock.json").read_text())["pid"] != first.pid
    os.kill(pack, signal.SIGKILL)
    text = first.communicate(timeout=120)[0]
    assert first.returncode == 1 and "2 failed" in text and "killed by SIGKILL" in text
    steps = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] for run in runs]
    assert max(steps) < 200 * 14
    again = sweep(*cells)
    assert again.returncode == 0, again.stdout + again.stderr
    others = by_fingerprint("whole")
    for name, run in by_fingerprint("outputs").items():
        assert f"going on from {run}" in log(run)
        equal(run, others[name], 0.0)


@pytest.mark.slow
def test_a_run_that_another_host_takes_over_takes_no_other_along():
    process = started(*LONG, "trainer.max_epochs=1000", "seed=1,2")
    one, other = until(saved)
    pack = json.loads((other / "lock.json").read_text())
    (one / "lock.json").write_text(json.dumps(pack | {"host": "elsewhere", "heartbeat": time.time()}))
    until(lambda: (record.alive(other) or pack)["pid"] != pack["pid"])  # a job of its own goes on
    (one / "lock.json").unlink()
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "2 runs: 2 finished" in text, text


@pytest.mark.slow
def test_a_signal_reaches_runs_that_could_not_be_stacked():
    cells = ["optimizer=sgd", "optimizer._target_=torch.optim.RMSprop", "~optimizer.fused"]
    cells += [*LONG, "seed=1,2"]
    process = started(*cells)
    saved = until(lambda: list(Path("outputs").glob("*/checkpoints/last.ckpt")))
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 143 and text.count("not packed, as optimizer RMSprop has no compiled form") == 2, text
    stopped = [run for run in runs_in("outputs") if record.state(run) == "partial"]
    assert {path.parents[1] for path in saved} <= set(stopped)
    assert all("stopped; the same command goes on from there" in log(path.parents[1]) for path in saved)
    going_on = [run for run in stopped if (run / "checkpoints" / "last.ckpt").exists()]  # one may have had no step yet
    again = sweep(*cells)
    assert again.returncode == 0, again.stdout + again.stderr
    for run in runs_in("outputs"):
        assert record.state(run) == "finished" and record.read(run)["attempts"] == 1 + (run in going_on)
        steps = [row["step"] for row in rows(run) if "val/elbo" in row]
        assert len(steps) == len(set(steps)) == 200


def test_a_pack_that_is_interrupted_saves_each_run():
    process = started(*LONG, "seed=1,2")
    runs = until(saved)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 130, text
    for run in runs:
        assert record.read(run)["state"] == "partial" and not (run / "lock.json").exists()
        assert "stopped; the same command goes on from there" in log(run)
