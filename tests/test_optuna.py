"""Studies: the same command goes on with one, up to as many trials in all; nothing is trained twice."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from vae_lab.cli import main
from vae_lab.commands import train
from vae_lab.launch import space
from vae_lab.launch.space import Choice, Interval, Steps
from vae_lab.launch.study import distribution, mend
from vae_lab.runs import identity, record

SPACE = ["d=choice(2,8,32)", "likelihood.s2=tag(log,interval(1e-3,1))", "objective.V=range(1,10)"]
HERE = ["hydra/launcher=basic", "logger=none"]  # in this process, one after another


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, and the process's environment as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained; training only computes a value, a rate and a distortion of d, s2 and V."""
    runs = []

    def run(cfg):
        folder = Path(cfg.paths.run)
        if record.state(folder) != "finished":
            runs.append(folder.name)
            record.begin(folder, identity.fingerprint(cfg), [])
            rate = cfg.d + 1.0 / cfg.objective.V
            rec = -((math.log(cfg.likelihood.s2) + 3) ** 2) - 10.0 / cfg.d
            record.end(folder, "finished", 0.0, {"val/kl": rate, "val/rec": rec}, rec - rate)
        return record.read(folder)["value"]

    monkeypatch.setattr(train, "run", run)
    return runs


def study(*arguments):
    """Runs a study."""
    main(["train", "-m", "hydra/sweeper=optuna", *HERE, *arguments])


def kept():
    """The study in the only journal there is."""
    [journal] = Path("outputs").glob("*.journal")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    [name] = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def ended():
    """The trials that count: what was proposed for each, in order, and its state and values."""
    trials = kept().trials
    requeued = {trial.user_attrs.get("again") for trial in trials}
    return [(trial.params, trial.state, trial.values) for trial in trials if trial.number not in requeued]


def refused(capsys, *arguments):
    """The message that a wrong study is answered with."""
    with pytest.raises(SystemExit) as exit:
        study(*arguments)
    said = capsys.readouterr().err + str(exit.value.code)
    assert exit.value.code not in (0, None) and "error: " in said and "Traceback" not in said
    return said


# --- the search space


@pytest.mark.parametrize(
    ("typed", "axis", "chosen"),
    [
        ("d=choice(2,8,32)", Choice("d", [2, 8, 32]), "d=2"),
        ("seed=1,2,3", Choice("seed", [1, 2, 3]), "seed=1"),
        ("encoder=mlp,conv", Choice("encoder", ["mlp", "conv"]), "encoder=mlp"),
        ("encoder.hidden=[100],[200,200]", Choice("encoder.hidden", ["[100]", "[200,200]"]), "encoder.hidden=[100]"),
        ("x=null,true,'a b'", Choice("x", ["null", True, "'a b'"]), "x=null"),
        ("x=true,1", Choice("x", [True, 1]), "x=true"),
        ("+t=1e-3,2", Choice("+t", [0.001, 2]), "+t=0.001"),
        ("objective.V=range(1,10)", Steps("objective.V", 1, 9, 1, False), "objective.V=1"),
        ("d=range(10,1,-4)", Steps("d", 2, 10, 4, False), "d=2"),
        ("d=int(interval(1,64))", Steps("d", 1, 64, 1, False), "d=1"),
        ("d=tag(log,int(interval(1,64)))", Steps("d", 1, 64, 1, True), "d=1"),
        ("s=interval(0,1)", Interval("s", 0.0, 1.0, False), "s=0.0"),
        ("s=tag(log,interval(1e-3,1))", Interval("s", 1e-3, 1.0, True), "s=0.001"),
        ("s=range(0.5,2,0.5)", Steps("s", 0.5, 1.5, 0.5, False), "s=0.5"),
    ],
)
def test_hydras_syntax_is_the_search_space(typed, axis, chosen):
    parser = OverridesParser.create()
    axes, fixed = space.split(parser.parse_overrides(["classes=0", "~callbacks.pictures", typed]))
    assert axes == [axis] and fixed == ["classes=0", "~callbacks.pictures"]
    assert type(axes[0]) is type(axis)
    [cell] = [space.overrides(fixed, {axis.key: space.first(axis)})]
    assert cell == ["classes=0", "~callbacks.pictures", chosen]
    # what is typed for a value is that value
    assert parser.parse_override(chosen).value() == parser.parse_override(f"x={chosen.partition('=')[2]}").value()
    own = distribution(axis)
    if isinstance(axis, Choice):
        assert list(own.choices) == axis.values
    else:
        assert (own.low, own.high, own.log) == (axis.low, axis.high, axis.log)
        assert getattr(own, "step", None) == (axis.step if isinstance(axis, Steps) else None)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["s=tag(lgo,interval(1e-3,1))"], "s must have no tag but log, got lgo"),
        (["s=tag(log,interval(0,1))"], "s must be above 0"),
        (["s=interval(1,1)"], "s must be an interval from a lower"),
        (["d=range(5,5)"], "d must have a value to choose"),
        (["d=tag(log,range(1,9,2))"], "d must go in steps of 1"),
        (["d=tag(log,choice(1,2))"], "d must be an interval"),
        (["d=1,2", "d=3,4"], "d is given twice"),
    ],
)
def test_a_search_space_that_makes_no_sense_is_refused(typed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        space.split(OverridesParser.create().parse_overrides(typed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d=2"], "nothing is searched"),
        (["d=2,8", "hydra.sweeper.n_trials=0"], "error: hydra.sweeper.n_trials must be a whole number >= 1"),
        (["d=2,8", "hydra.sweeper.sampler=tpee"], "sampler must be one of tpe, gp, qmc, nsga2"),
        (["d=2,8", "hydra.sweeper.metrics=[test/elbo]"], "metrics must not be of the test data"),
        (["d=2,8", "hydra.sweeper.metrics=[val/kl,val/rec]"], "directions must be 2"),
        (["d=2,8", "hydra.sweeper.metrics=[val/kl]", "hydra.sweeper.pruner=median"], "pruner must be none"),
        (["d=2,8", "hydra.sweeper.study=a/b"], "study must be a name for a file"),
        (["d=2,8", "hydra.sweeper.max_failure_rate=2"], "max_failure_rate must be"),
        (["likelihood.s2=interval(-1,1)"], "s2 must be"),
        (["likelihood=bernoulli", "likelihood.s2=interval(0.1,1)"], "no key 's2' in the chosen likelihood"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_before_its_first_trial(arguments, message, trained, capsys):
    assert message in refused(capsys, *arguments)
    assert not trained


# --- trials in all


def test_the_same_command_goes_on_to_as_many_trials_in_all(trained, capsys):
    study(*SPACE, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2")
    first = ended()
    assert len(first) == 5 and all(state == TrialState.COMPLETE for _, state, _ in first)
    for params, _, [value] in first:  # what was proposed is what was run
        rec = -((math.log(params["likelihood.s2"]) + 3) ** 2) - 10 / params["d"]
        assert value == pytest.approx(rec - params["d"] - 1 / params["objective.V"], rel=1e-12)
    runs = list(trained)
    study(*SPACE, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2")
    assert trained == runs and ended() == first  # finished: nothing is started
    study(*SPACE, "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=2")
    assert len(ended()) == 8 and ended()[:5] == first
    assert len(set(trained)) == len(trained)
    best = max(values[0] for _, _, values in ended())
    said = capsys.readouterr().out
    assert f"val/elbo {best:.4f}" in said.splitlines()[-2] and "optuna-dashboard outputs/study-" in said
    assert {p.name for p in Path("outputs").iterdir() if not p.is_dir()} == {f"{kept().study_name}.journal"}
    assert not list(Path("outputs").glob(".study-*"))  # the lock is gone


@pytest.mark.parametrize(
    ("sampler", "n"),
    [("tpe", 5), *(pytest.param(s, 12, marks=pytest.mark.slow) for s in ("tpe", "gp", "qmc", "nsga2"))],
)
def test_an_interrupted_study_is_the_study_that_was_not(sampler, n, trained, monkeypatch, capsys):
    arguments = [*SPACE, f"hydra.sweeper.n_trials={n}", "hydra.sweeper.n_jobs=2", f"hydra.sweeper.sampler={sampler}"]
    study(*arguments, "paths.outputs=whole")
    Path("whole").rename("outputs")
    whole, runs = ended(), sorted(trained)
    Path("outputs").rename("whole")
    trained.clear()
    run, calls = train.run, []

    def interrupted(cfg):
        calls.append(cfg)
        if len(calls) in (2, 5):  # within a batch, and between them
            raise KeyboardInterrupt
        return run(cfg)

    monkeypatch.setattr(train, "run", interrupted)
    stops = 0
    while stops < 3:
        try:
            study(*arguments, "paths.outputs=outputs")
            break
        except SystemExit as stop:
            assert stop.code == 130
            stops += 1
    assert stops == 2
    assert ended() == whole
    assert sorted(trained) == runs and len(trained) == len(set(trained))  # nothing was trained twice
    assert len({str(params) for params, *_ in whole}) == n  # a seed that began anew would repeat itself


def test_the_seed_decides_what_is_proposed(trained):
    for seed in (0, 1):
        study(*SPACE, "hydra.sweeper.n_trials=3", f"hydra.sweeper.seed={seed}", f"paths.outputs=outputs/{seed}")
    assert len(set(trained)) == 6


def test_failed_trials_are_told_and_the_study_goes_on(trained, monkeypatch, capsys):
    run = train.run

    def broken(cfg):
        if cfg.d == 8:
            raise FloatingPointError("rec not finite at step 1")
        return run(cfg)

    monkeypatch.setattr(train, "run", broken)
    arguments = ["d=choice(2,8)", SPACE[1], "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4"]
    study(*arguments, "hydra.sweeper.max_failure_rate=1")
    states = [state for _, state, _ in ended()]
    assert len(states) == 8 and all((state == TrialState.FAIL) == (params["d"] == 8) for params, state, _ in ended())
    failed = states.count(TrialState.FAIL)
    assert 0 < failed < 8 and f"{failed} failed" in capsys.readouterr().out


def test_a_study_whose_trials_fail_stops(monkeypatch, capsys):
    calls = []

    def broken(cfg):
        calls.append(cfg)
        raise FloatingPointError("rec not finite at step 1")

    monkeypatch.setattr(train, "run", broken)
    said = refused(capsys, *SPACE, "hydra.sweeper.n_trials=8", "hydra.sweeper.max_failure_rate=0.25")
    assert "3 of 8 trials failed" in said and len(calls) == 3


def test_a_value_that_is_not_finite_is_a_failure(monkeypatch):
    def diverged(cfg):
        record.begin(Path(cfg.paths.run), "0" * 12, [])
        record.end(Path(cfg.paths.run), "finished", 0.0, {"val/elbo": None}, math.nan)

    monkeypatch.setattr(train, "run", diverged)
    study("d=2,8", "hydra.sweeper.n_trials=2", "hydra.sweeper.max_failure_rate=1")
    assert [state for _, state, _ in ended()] == [TrialState.FAIL] * 2
    assert "not finite" in kept().trials[0].user_attrs["error"]


def test_a_trial_that_cannot_be_composed_fails_alone(trained):
    study(
        "d=choice(2,8)", "likelihood.s2=choice(0.1,-1)", "hydra.sweeper.n_trials=8", "hydra.sweeper.max_failure_rate=1"
    )
    for params, state, _ in ended():
        assert (state == TrialState.FAIL) == (params["likelihood.s2"] == -1)
    assert len(trained) == len(set(trained)) <= 2
    errors = [t.user_attrs["error"] for t in kept().trials if t.state == TrialState.FAIL]
    assert errors and all("s2 must be" in error for error in errors)


def test_rate_and_distortion_have_a_front(trained, capsys):
    goal = ["hydra.sweeper.metrics=[val/kl,val/rec]", "hydra.sweeper.directions=[minimize,maximize]"]
    study(*SPACE, *goal, "hydra.sweeper.sampler=nsga2", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4")
    points = [tuple(values) for *_, values in ended()]
    front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    said = capsys.readouterr().out
    shown = {(float(a), float(b)) for a, b in re.findall(r"val/kl (\S+)  val/rec (\S+)", said)}
    assert shown == {(round(a, 4), round(b, 4)) for a, b in front} and len(shown) > 1


def test_a_named_study_keeps_to_its_search(trained, capsys):
    named = ["hydra.sweeper.study=mine", "hydra.sweeper.n_trials=2"]
    study(*SPACE, *named)
    assert Path("outputs/mine.journal").exists()
    for other in (["d=choice(2,8)"], [*SPACE, "optimizer.lr=0.5"]):
        assert "study 'mine' has searched something else" in refused(capsys, *other, *named)
    study(*SPACE, *named, "trainer.log_every_n_steps=1", "hydra.sweeper.sampler=qmc", "hydra.sweeper.n_trials=3")
    assert len(ended()) == 3


def test_two_commands_do_not_run_one_study_at_once(trained, capsys):
    named = ["hydra.sweeper.study=mine", "hydra.sweeper.n_trials=2"]
    with record.claim(Path("outputs/.mine")):
        other = refused(capsys, *SPACE, *named)
    assert str(os.getpid()) in other and not trained
    study(*SPACE, *named)
    assert len(trained) == 2


def test_a_journal_that_was_torn_is_mended(trained):
    study(*SPACE, "hydra.sweeper.n_trials=2")
    [journal] = Path("outputs").glob("*.journal")
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"a-b')
    study(*SPACE, "hydra.sweeper.n_trials=3")
    assert len(ended()) == 3 and journal.read_bytes().startswith(whole)
    for content in (b"", b"a\n", b"a\nb\n"):
        journal.write_bytes(content)
        mend(journal)
        assert journal.read_bytes() == content
    mend(Path("outputs/none.journal"))


def test_hydra_finds_the_sweepers_without_torch_or_optuna():
    code = (
        "import sys, hydra_plugins.vae_lab.optuna, hydra_plugins.vae_lab.wandb\n"
        "loaded = {'torch', 'optuna', 'wandb', 'pytorch_lightning'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_without_optuna_its_extra_is_named(trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "vae_lab.launch.study")
    assert "pip install 'vae-lab[optuna]'" in refused(capsys, "d=2,8")


# --- pruning


QUICK = ["trainer.max_epochs=3", "callbacks=[checkpoint]", "logger=none", "d=2"]


def contender(value):
    """A study with five finished trials of this val/elbo at each epoch, and one that runs; its journal."""
    journal = Path("contest.journal").absolute()
    contest = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))), study_name="contest", direction="maximize"
    )
    for _ in range(5):
        trial = contest.ask()
        for epoch in (1, 2, 3):
            trial.report(value, epoch)
        contest.tell(trial, value)
    assert contest.ask().number == 5
    return journal


def watched(journal):
    values = {"_target_": "vae_lab.callbacks.Pruning", "journal": journal, "study": "contest", "trial": 5}
    return [f"+callbacks.pruning.{key}={value}" for key, value in (values | {"pruner": "median"}).items()]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_that_falls_behind_is_ended_and_can_go_on():
    journal = contender(1e9)
    main(["train", *QUICK, *watched(journal)])
    [run] = [path.parent for path in Path("outputs").glob("*/run.json")]
    known = record.read(run)
    assert record.state(run) == "partial" and "pruned after 1 epochs, as trial 5 of contest" in known["error"]
    trial = optuna.load_study(study_name="contest", storage=JournalStorage(JournalFileBackend(str(journal)))).trials[5]
    assert trial.user_attrs["pruned"] == 1 and list(trial.intermediate_values) == [1]
    assert trial.intermediate_values[1] == pytest.approx(known["value"], rel=1e-6)
    # without the study, the same run is trained to its end, as if it had never been ended
    main(["train", *QUICK])
    assert record.state(run) == "finished" and len(list(Path("outputs").glob("*/run.json"))) == 1
    main(["train", *QUICK, "paths.outputs=other"])
    [other] = [path.parent for path in Path("other").glob("*/run.json")]
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(run).items())
    assert record.read(run)["value"] == record.read(other)["value"]


def test_a_run_that_leads_is_finished_and_a_trial_that_ended_hears_nothing():
    journal = contender(-1e9)
    main(["train", *QUICK, *watched(journal)])
    [run] = [path.parent for path in Path("outputs").glob("*/run.json")]
    contest = optuna.load_study(study_name="contest", storage=JournalStorage(JournalFileBackend(str(journal))))
    assert record.state(run) == "finished" and list(contest.trials[5].intermediate_values) == [1, 2, 3]
    contest.tell(5, record.read(run)["value"])
    before = journal.read_bytes()
    main(["train", *QUICK, "force=true", *watched(journal)])
    assert journal.read_bytes() == before


def test_pruned_trials_are_told(monkeypatch, capsys):
    """Of each batch's two runs the study is told of the second that it was pruned."""

    def run(cfg):
        pruning, folder = cfg.callbacks.pruning, Path(cfg.paths.run)
        assert pruning.pruner == "hyperband"
        storage = JournalStorage(JournalFileBackend(pruning.journal))
        contest = optuna.load_study(study_name=pruning.study, storage=storage)
        trial = optuna.Trial(contest, contest.trials[pruning.trial]._trial_id)
        trial.report(-cfg.d, 1)
        record.begin(folder, identity.fingerprint(cfg), [])
        if pruning.trial % 2:
            trial.set_user_attr("pruned", 1)
        record.end(folder, "partial" if pruning.trial % 2 else "finished", 0.0, {}, -float(cfg.d))
        return -float(cfg.d)

    monkeypatch.setattr(train, "run", run)
    study("d=range(1,100)", "hydra.sweeper.pruner=hyperband", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2")
    assert [state for _, state, _ in ended()] == [TrialState.COMPLETE, TrialState.PRUNED] * 3
    assert "6 trials (3 finished, 3 pruned)" in capsys.readouterr().out


# --- real trainings, each in a process of its own


@pytest.mark.slow
def test_a_study_that_was_killed_trains_nothing_twice():
    """kill -9 of the whole study while its first trials run, by the pool; then the same command."""
    arguments = ["hydra.sweeper.n_trials=3", "d=choice(2,3)", SPACE[1], "trainer.max_epochs=4", "logger=none"]
    command = [sys.executable, "-m", "vae_lab.cli", "train", "-m", "hydra/sweeper=optuna", *arguments]
    command += ["hydra.sweeper.n_jobs=2", "callbacks=[checkpoint]", "hydra.sweeper.pruner=median"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    waited = time.monotonic() + 240
    while not list(Path("outputs").glob("*/checkpoints/last.ckpt")):
        assert time.monotonic() < waited and killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    for path in Path("outputs").glob("*/lock.json"):  # its jobs are in sessions of their own
        try:
            os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
        except (OSError, ValueError):
            continue
    assert not ended() or all(state != TrialState.COMPLETE for _, state, _ in ended())
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    trials = [trial for trial in ended() if trial[1] == TrialState.COMPLETE]
    assert len(ended()) == 3 and len(trials) == 3  # the median pruner lets the first five trials be
    for trial in kept().trials:
        if trial.state == TrialState.COMPLETE:
            [run] = Path("outputs").glob(trial.user_attrs["run"])
            assert record.read(run)["value"] == trial.value
            history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
            steps = [row["step"] for row in history if "val/elbo" in row]
            assert len(steps) == len(set(steps)) == 4  # its curve has no gap, and nothing twice
    again = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0 and "starts" not in again.stdout + again.stderr and "3 trials" in again.stdout
