"""The commands, as a user types them."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import vae_lab
from vae_lab.cli import main
from vae_lab.runs import record

ROOT = Path(__file__).parents[1]
QUICK = ["trainer.max_epochs=2", "callbacks=[checkpoint]"]
ACCOUNT = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, no W&B account, and the process's environment as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    without_account(monkeypatch)


def without_account(monkeypatch):
    for name in ACCOUNT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)


def runs_in(folder):
    return sorted(path.parent for path in Path(folder).glob("*/config.yaml"))


def train(*arguments):
    """Trains in this process; the new runs' folders."""
    before = runs_in("outputs")
    main(["train", *arguments])
    return [run for run in runs_in("outputs") if run not in before]


def weights(run, checkpoint="last"):
    return torch.load(run / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)["state_dict"]


def command(*arguments, **env):
    """A command in a process of its own, which has no part in this one's W&B service."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | env
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=env, check=False
    )


def refused(capsys, *arguments):
    """The one line that a wrong command is answered with."""
    with pytest.raises(SystemExit) as exit:
        main([*arguments])
    said = capsys.readouterr().err + (f"{exit.value.code}\n" if isinstance(exit.value.code, str) else "")
    assert exit.value.code not in (0, None)
    assert said.count("\n") == 1 and said.startswith("error: ") and "Traceback" not in said
    return said.strip()


# --- one run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything on: W&B without an account, pictures, checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_account(patch)
        [found] = train("trainer.max_epochs=5", "trainer.log_every_n_steps=10", "objective.V=3")
    return folder / found


def inspect(run, file=None):
    """An offline W&B run as W&B's own reader sees it: its summary, and its records; `file`, where there are several."""
    if file is None:
        [folder] = record.wandb_folders(run)
        [file] = folder.glob("*.wandb")
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", str(file)]
    records = subprocess.run([*leet, "--json"], capture_output=True, text=True, timeout=120, check=True).stdout
    summary = subprocess.run([*leet, "--summary", "--json"], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(summary.stdout), [json.loads(line) for line in records.splitlines()]


def test_a_run_leaves_everything_in_its_folder(run):
    assert {p.name for p in run.iterdir()} == {
        *("config.yaml", "environment.json", "run.json", "metrics.json", "history.jsonl"),
        *("checkpoints", "pictures"),
    }
    assert {p.name for p in run.parent.iterdir()} == {run.name, "wandb"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    names = ("reconstructions", "samples", "traversals", "manifold", "latent_scatter")
    assert {p.name for p in (run / "pictures").iterdir()} == {f"{n}{e}.png" for n in names for e in ("", "-epoch0005")}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["encoder"]["d"] == 2 and config["encoder"]["shape"] == [1, 8, 8]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__ and "objective.V=3" in environment["overrides"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test/elbo"] == pytest.approx(metrics["test/rec"] - metrics["test/kl"], abs=1e-4)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10  # on Linux
    assert 100 < json.loads((run / "run.json").read_text())["peak_mib"] <= used
    assert {"train/elbo", "val/elbo", "val/kl_dim/0", "train/grad_norm", "train/images_per_second"} <= set(metrics)


def test_wandb_without_an_account_holds_history_config_and_summary(run):
    summary, records = inspect(run)
    metrics = json.loads((run / "metrics.json").read_text())
    text = json.dumps(summary)
    assert '"exit_code": 0' in text or "exit code 0" in text
    history = [r["history"] for r in records if r["type"] == "history"]
    elbos = [v for row in history for k, v in flatten(row).items() if k.endswith("val/elbo")]
    assert len(elbos) == 5 and float(elbos[-1]) == pytest.approx(metrics["val/elbo"], rel=1e-6)
    steps = [float(v) for row in history for k, v in flatten(row).items() if k.endswith("trainer/global_step")]
    assert steps == sorted(steps) and max(steps) == 65  # five epochs of thirteen optimiser steps
    seen = flatten(summary)
    assert any(k.endswith("objective.V") and v == 3 for k, v in seen.items())
    assert any(k.endswith("likelihood.s2") and v == 0.02 for k, v in seen.items())
    assert any(k.endswith("test/elbo") and v == pytest.approx(metrics["test/elbo"]) for k, v in seen.items())
    assert any(k.endswith("val/elbo.max") for k in seen)
    assert "pictures/manifold" in text


def flatten(node, prefix=""):
    items = {}
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        items |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict | list) else {f"{prefix}{key}": value}
    if isinstance(node, dict) and "key" in node:  # W&B's protocol: {"key": ..., "value_json": ...}
        items[str(node["key"])] = json.loads(node["value_json"]) if "value_json" in node else node.get("value")
    return items


def test_evaluate_repeats_the_runs_own_test(run, capsys):
    metrics = json.loads((run / "metrics.json").read_text())
    main(["evaluate", f"run={run}"])
    assert f"{metrics['test/elbo']:.3f} ± {metrics['test/elbo_se']:.3f}" in capsys.readouterr().out
    main(["evaluate", f"run={run}", "split=train", "V=7", "checkpoint=last"])
    kept = json.loads((run / "evaluation.json").read_text())
    assert {"split=test V=3 checkpoint=best", "split=train V=7 checkpoint=last"} <= set(kept)
    assert kept["split=test V=3 checkpoint=best"]["elbo"] == metrics["test/elbo"]
    main(["evaluate", f"run={run}", "split=val", "checkpoint=last"])
    assert json.loads((run / "evaluation.json").read_text())["split=val V=3 checkpoint=last"]["elbo"] == pytest.approx(
        metrics["val/elbo"], rel=1e-6
    )


def test_load(run):
    vae = vae_lab.load(run)
    assert not vae.training and vae.d == 2
    best = weights(run, "best")
    assert all(torch.equal(v, best[f"vae.{k}"]) for k, v in vae.state_dict().items())


def test_evaluate_refuses(run, capsys):
    assert "run must be" in refused(capsys, "evaluate")
    assert "is not the folder of a run" in refused(capsys, "evaluate", "run=nowhere")
    assert not Path("nowhere").exists()
    assert "split must be one of train, val, test" in refused(capsys, "evaluate", f"run={run}", "split=tset")
    assert "V must be" in refused(capsys, "evaluate", f"run={run}", "V=0")
    assert "there: best, last" in refused(capsys, "evaluate", f"run={run}", "checkpoint=first")


def test_the_same_command_gives_the_same_weights():
    [a], [b] = (train(*QUICK, "logger=none", "d=3", f"paths.outputs=outputs/{name}") or runs_in(f"outputs/{name}")
                for name in "ab")  # fmt: skip
    assert all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())
    [c] = train(*QUICK, "logger=none", "d=3", "seed=1")
    assert any(not torch.equal(v, weights(c)[k]) for k, v in weights(a).items())


def test_the_test_split_is_only_touched_by_test(monkeypatch):
    from vae_lab.data.module import InMemory
    from vae_lab.lit import LitVAE

    asked, rows = [], InMemory._rows
    monkeypatch.setattr(
        InMemory, "_rows", lambda self, split, **how: (asked.append(split), rows(self, split, **how))[1]
    )
    monkeypatch.setattr(LitVAE, "on_test_epoch_start", lambda self: asked.append("testing") or setattr(
        self, "eval_noise", torch.Generator()))  # fmt: skip
    train("trainer.max_epochs=1", "logger=none")
    assert {"train", "val", "test"} <= set(asked)
    assert asked.index("test") > max(i for i, split in enumerate(asked) if split in ("train", "val"))


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "none"])
def test_other_loggers(logger):
    [run] = train(*QUICK, f"logger={logger}")
    if logger == "csv":
        header, *rows = (run / "csv" / "metrics.csv").read_text().splitlines()
        assert "val/elbo" in header.split(",") and len(rows) >= 4
    elif logger == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard")).Reload()
        assert len(events.Scalars("val/elbo")) == 2
    else:
        kept = {"config.yaml", "environment.json", "metrics.json", "run.json", "history.jsonl", "checkpoints"}
        assert {p.name for p in run.iterdir()} == kept


def test_numbers_too_small_to_matter_take_no_time():
    torch.set_flush_denormal(False)
    assert torch.tensor(1e-38) * 0.1 > 0
    train(*QUICK, "logger=none")
    assert torch.tensor(1e-38) * 0.1 == 0


def test_runs_without_callbacks():
    [run] = train("trainer.max_epochs=1", "logger=none", "callbacks=[]")
    assert "test/elbo" in json.loads((run / "metrics.json").read_text()) and not (run / "checkpoints").exists()


def test_runs_without_validation_data():
    [run] = train(*QUICK, "logger=none", "data.validation=0")
    metrics = json.loads((run / "metrics.json").read_text())
    assert "val/elbo" not in metrics and "test/elbo" in metrics
    assert all(torch.equal(v, weights(run, "best")[k]) for k, v in weights(run).items())


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "logger", "limit"), [("32-true", "wandb", 1e-5), ("64-true", "none", 1e-10)])
def test_two_processes_give_what_one_gives(precision, logger, limit):
    script = str(ROOT / "scripts" / "train.py")
    shared = [f"logger={logger}", f"trainer.precision={precision}", "trainer.accelerator=cpu", "callbacks=[checkpoint]"]
    shared += ["objective.V=2", "sampling.batch_size=90", "trainer.max_steps=50", "trainer.max_epochs=-1"]
    for devices in (1, 2):
        parts = ["trainer=ddp", f"trainer.devices={devices}", f"paths.outputs=outputs/{devices}"]
        done = command(script, *shared, *parts, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    [one], [two] = runs_in("outputs/1"), runs_in("outputs/2")
    assert one.name == two.name  # it is the same run
    # both processes used one folder
    assert {p.name for p in Path("outputs/2").iterdir()} == {two.name} | ({"wandb"} if logger == "wandb" else set())
    assert not (two / "lock.json").exists() and json.loads((two / "run.json").read_text())["attempts"] == 1
    assert max((v - weights(two)[k]).abs().max() for k, v in weights(one).items()) < limit
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert a.keys() == b.keys() and {"train/elbo", "val/elbo", "val/kl_dim/0", "test/elbo_se"} <= a.keys()
    for name in a.keys() - {"train/images_per_second"}:
        assert a[name] == pytest.approx(b[name], rel=1e-6, abs=1e-6), name
    if logger == "wandb":
        assert len(list(Path("outputs/2/wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_runs(experiment, request):
    root = []
    if "fashion" in experiment:
        root = [f"data.root={request.getfixturevalue('data_folder')}"]
    short = ["trainer.max_epochs=1", "+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1"]
    [run] = train(f"experiment={experiment}", *root, *short, "+trainer.limit_test_batches=1", "logger=none")
    assert json.loads((run / "metrics.json").read_text())["test/elbo"] is not None
    assert vae_lab.load(run).d == yaml.safe_load((run / "config.yaml").read_text())["d"]


# --- sweeps


@pytest.mark.slow
def test_a_sweep_is_so_many_runs_each_with_its_own_wandb():
    script = str(ROOT / "scripts" / "train.py")
    done = command(script, "-m", "d=2,8", "objective.V=1,5", "likelihood.s2=0.05,0.5", *QUICK)
    assert done.returncode == 0, done.stderr
    found = runs_in("outputs")
    assert len(found) == 8
    seen = set()
    for run in found:
        config = yaml.safe_load((run / "config.yaml").read_text())
        cell = config["d"], config["objective"]["V"], config["likelihood"]["s2"]
        assert json.loads((run / "metrics.json").read_text())["test/elbo"] is not None
        summary = flatten(inspect(run)[0])
        for key, value in zip(("d", "objective.V", "likelihood.s2"), cell, strict=True):
            assert any(re.search(rf"(^|config\.){re.escape(key)}$", k) and v == value for k, v in summary.items()), key
        seen.add(cell)
    assert len(seen) == 8


def test_a_failed_job_leaves_the_others_alone(own, capsys):
    with pytest.raises(SystemExit) as exit:
        several = ["hydra/launcher=basic", "likelihood=breaking", "likelihood.calls=1000,5,2000"]
        main(["train", "--config-dir", str(own), "-m", *several, *QUICK])
    assert exit.value.code not in (0, None)
    assert "error: rec not finite at step 6 (epoch 0)" in capsys.readouterr().err
    found = runs_in("outputs")
    states = {yaml.safe_load((run / "config.yaml").read_text())["likelihood"]["calls"]: state_of(run) for run in found}
    assert {calls: known["state"] for calls, known in states.items()} == {
        **{1000: "finished", 5: "failed", 2000: "finished"},
    }
    assert [len(record.wandb_folders(run)) for run in found] == [1, 1, 1]


def test_several_processes_are_refused_in_a_sweep_of_one(capsys):
    words = ["hydra/launcher=basic", "trainer.strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    with pytest.raises(SystemExit) as exit:
        main(["train", "-m", *words, "d=2,3", *QUICK, "logger=none"])
    assert exit.value.code not in (0, None)
    said = capsys.readouterr().err
    assert "error: trainer.devices must be 1 in a sweep" in said and "hydra/launcher=pool" in said
    assert runs_in("outputs") == []


# --- mistakes

WRONG = {
    "likelihood=nope": "likelihood=nope: no such option; likelihood must be one of bernoulli, categorical",
    "encoder=mpl": "did you mean 'mlp'?",
    "logger=null": "logger=null: no such option; logger must be one of csv, none",
    "callbacks=[progres]": "callbacks=progres: no such option; callbacks must be one of checkpoint, early_stopping, pi",
    "~encoder": "~encoder: encoder must be one of conv, free, linear, mlp",
    "~callbacks": "~callbacks: callbacks=[] is without any; callbacks must be some of checkpoint",
    "modle.d=2": "modle.d=2: no key 'modle.d'",
    "likelihood.s3=1": "no key 'likelihood.s3'; did you mean 'likelihood.s2'?",
    "likelihood=bernoulli likelihood.s2=0.1": "likelihood.s2=0.1: no key 's2' in the chosen likelihood",
    "d==": "d==: Error parsing override 'd=='",
    "+foo=1": "foo: no such key",
    "+likelihood.foo=1": "likelihood.foo is nothing that Gaussian takes; leave it out with ~likelihood.foo",
    "d=abc": "d must be a whole number >= 1, got 'abc'",
    "d=0": "d must be a whole number >= 1, got 0",
    "likelihood.s2=-1": "likelihood.s2 must be a finite number > 0, got -1",
    "objective.V=0": "objective.V must be a whole number >= 1, got 0",
    "seed=-1": "seed must be a whole number in [0, 2^32), got -1",
    "trainer.devices=99": "trainer.devices must be between 1 and",
    "trainer.max_epochs=abc": "trainer.max_epochs must be a whole number >= 1, got 'abc'",
    "trainer.precision=odd": "trainer: Precision 'odd' is invalid",
    "+trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches must be 1, got 2; use a larger sampling",
    "+trainer.fast_dev_run=true": "trainer.fast_dev_run must be false",
    "schedule=cosine trainer.max_epochs=-1 trainer.max_time=00:00:01:00": "schedule must be constant where trainer.max",
    "optimizer.lr=-1": "optimizer.lr must be a finite number > 0, got -1",
    "encoder.activation=tan": "encoder.activation must be one of tanh",
    "data.shape=[64] encoder=conv": "data.shape must be [C, H, W] for encoder Conv, which takes images, got [64]",
    "encoder=linear posterior=full": "posterior must be diagonal where the encoder takes none, as vae_lab.enc",
    "posterior=flow posterior.hidden=x": "posterior.hidden must be a list of whole numbers >= 1, got 'x'",
    "posterior=flow d=1": "d must be at least 2 for a flow",
    "prior=vamp prior.components=0": "prior.components must be a whole number >= 1, got 0",
    "prior=vamp classes=10": "classes must be 0 for the vamp prior",
    "decoder.d=3": "d must be the same for encoder, decoder, prior, got 2, 3, 2",
    "data=fashion_mnist data.root=/nowhere": "train-images-idx3-ubyte",
    "data=arrays": "data.root must be given",
    "data=arrays data.root=/nowhere.npy": "data.root must be a .npy or .npz file: there is no file /nowhere.npy",
    "likelihood=categorical": "data in {0, 1/255, ..., 1}, but those of vae_lab.data.sources.Digits have 17 levels; ",
    "likelihood=discretised_logistic": "use likelihood.levels=17",
    "likelihood=categorical preprocessing=dequantised": "use preprocessing=raw likelihood.levels=17, or likelihood=gau",
    "likelihood=gaussian_learned likelihood.per_channel=true data.shape=[64]": "likelihood.per_channel must be false",
    "data.validation=5000": "data.validation must leave data to train on",
    "logger.offline=maybe": "logger.offline must be true or false, got 'maybe'",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(words, capsys, unchecked):
    assert WRONG[words] in refused(capsys, "train", *words.split())
    assert not Path("outputs").exists() or not any(Path("outputs").iterdir())


def test_values_are_checked_before_data_load(monkeypatch, capsys):
    from vae_lab.data.sources import Digits

    monkeypatch.setattr(Digits, "load", lambda self: pytest.fail("data were loaded"))
    for words in ("d=0", "likelihood.s2=-1", "objective.V=0", "trainer.devices=99", "optimizer.lr=-1"):
        refused(capsys, "train", words)


def test_bernoulli_refuses_data_outside_0_1(capsys):
    import numpy as np

    np.save("x.npy", np.linspace(-1, 2, 600, dtype=np.float32).reshape(60, 10))
    said = refused(capsys, "train", "data=arrays", "data.root=x.npy", "likelihood=bernoulli")
    assert "needs data in" in said and "reach from" in said and "likelihood=gaussian" in said
    [run] = train("data=arrays", "data.root=x.npy", *QUICK, "logger=none")  # flat data and a gaussian are fine
    assert vae_lab.load(run).shape == (10,)


def test_what_hydra_alone_can_see_is_answered_without_torch():
    code = (
        "import sys; from vae_lab.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pytorch_lightning', 'wandb', 'torchmetrics', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    for words in (["--help"], ["likelihood=nope"], ["modle.d=2"], ["likelihood=bernoulli", "likelihood.s2=1"]):
        done = command("-c", code, "train", *words)
        assert done.returncode == 0, done.stderr
    assert "objective" in command("-c", code, "train", "--help").stdout


def test_a_traceback_for_those_who_ask():
    done = command(str(ROOT / "scripts" / "train.py"), "d=0", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0 and "Traceback" in done.stderr and "d must be a whole number" in done.stderr


# --- the same command again


LONG = ["trainer.max_epochs=100000", "callbacks=[checkpoint]", "logger=none", "callbacks.checkpoint.every_seconds=0.2"]


def state_of(run):
    return json.loads((run / "run.json").read_text())


def started(*arguments, **env):
    """A command that is left to run."""
    words = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | env)


def wait_for(pattern, process=None, seconds=120):
    until = time.monotonic() + seconds
    while not (found := sorted(Path().glob(pattern))):
        assert time.monotonic() < until and (process is None or process.poll() is None), pattern
        time.sleep(0.05)
    return found[0]


def test_a_finished_run_is_not_trained_again_and_needs_no_torch(capsys):
    [run] = train(*QUICK, "logger=none", "d=3", "seed=1")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    elbo = f"{state_of(run)['results']['test/elbo']:.3f}"
    assert elbo in capsys.readouterr().out
    code = (
        "import sys; from vae_lab.cli import main\n"
        "main(sys.argv[1:])\n"
        "heavy = {'torch', 'pytorch_lightning', 'wandb', 'torchmetrics', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    # in other words, and elsewhere
    other = ["seed=1", "d=3", "likelihood.s2=2e-2", "trainer=ddp", "callbacks=[checkpoint,progress]"]
    for words in ([*QUICK, "logger=none", "d=3", "seed=1"], [QUICK[0], *other]):
        done = command("-c", code, "train", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("finished on ") and elbo in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert [path.name for path in Path("outputs").iterdir()] == [run.name]


def test_force_trains_again_and_keeps_the_old(capsys):
    quick = [*QUICK, "logger.offline=true"]
    [run] = train(*quick)
    first, ended = weights(run), state_of(run)["ended"]
    assert train(*quick, "force=true") == [run.with_name(f"{run.name}.old-1")]
    assert all(torch.equal(v, weights(run)[k]) for k, v in first.items())
    assert state_of(run)["attempts"] == 1 and state_of(run.with_name(f"{run.name}.old-1"))["ended"] == ended
    fingerprint = state_of(run)["fingerprint"]
    # on W&B the second is a run of its own: curves that begin again would be thrown away
    assert state_of(run)["wandb"] == f"{fingerprint}-1"
    old = run.with_name(f"{run.name}.old-1")
    first, second = (record.wandb_folders(folder) for folder in (old, run))
    assert [len(first), len(second)] == [1, 1] and second[0].name.endswith(f"{fingerprint}-1")
    # what is wrong is found before anything is moved
    assert "trainer.devices must be" in refused(capsys, "train", *quick, "force=true", "trainer.devices=99")
    assert sorted(p.name for p in Path("outputs").iterdir()) == [run.name, old.name, "wandb"]
    assert "force must be true or false, got 3" in refused(capsys, "train", *quick, "force=3")


def test_a_run_whose_training_broke_says_so_and_is_tried_again(own, capsys):
    words = ["--config-dir", str(own), "likelihood=breaking", "likelihood.calls=35", "callbacks=[checkpoint]"]
    refused(capsys, "train", *words, "logger=none")
    [run] = runs_in("outputs")
    known = state_of(run)
    assert known["state"] == "failed" and known["error"].startswith("FloatingPointError: rec not finite at step 34")
    assert known["arguments"][0] == f"--config-dir={own}"
    # from step 26, with the calls counted anew: 35 are 13 + 1 + 13 + 1 + 7
    assert "at step 60 (epoch 4)" in refused(capsys, "train", *words, "logger=none")
    assert state_of(run)["attempts"] == 2 and state_of(run)["checkpoint"] == "checkpoints/last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_is_partial_and_goes_on(number, status, capsys):
    process = started(*LONG)
    wait_for("outputs/*/checkpoints/last.ckpt", process)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == status, err
    [run] = runs_in("outputs")
    from vae_lab.runs import record

    assert record.state(run) == "partial"
    if number != signal.SIGKILL:
        assert "the same command goes on from there: vae-lab train trainer.max_epochs=100000" in err
        assert "Traceback" not in err and state_of(run)["seconds"] > 0
    again = started(*LONG)
    while again.poll() is None and state_of(run)["attempts"] != 2:
        time.sleep(0.05)
    assert state_of(run)["checkpoint"] == "checkpoints/last.ckpt" and record.state(run) == "running"
    busy = command(str(ROOT / "scripts" / "train.py"), *LONG)
    assert busy.returncode == 75 and f"is being trained by process {again.pid}" in busy.stderr
    again.kill()
    again.wait()


@pytest.mark.slow
def test_processes_that_begin_at_the_same_moment_train_once():
    """With the same words and with others, which would make another folder."""
    short = ["trainer.max_epochs=3", "callbacks=[checkpoint]", "logger=none", "wait=true"]
    words = [["d=3", "seed=1"], ["seed=1", "d=3"], ["d=3", "seed=1", "likelihood.s2=0.02"], ["d=3", "seed=1"]]
    several = [started(*more, *short, OMP_NUM_THREADS="1") for more in words]
    said = [process.communicate(timeout=300) for process in several]
    assert [process.returncode for process in several] == [0] * 4, said
    [run] = Path("outputs").iterdir()
    assert state_of(run)["state"] == "finished" and state_of(run)["attempts"] == 1
    assert sum("finished on" in out for out, _ in said) == 3


# --- a component of one's own, from another folder

PACKAGE = """
import torch
from torch.distributions import constraints
from vae_lab.distributions import IsotropicNormal
from vae_lab.interfaces import Likelihood

class Breaking(Likelihood):
    support = constraints.real

    def __init__(self, shape, calls):
        super().__init__()
        self.shape, self.calls, self.seen = tuple(shape), calls, 0

    def forward(self, eta):
        self.seen += 1
        s2 = torch.tensor(float("nan") if self.training and self.seen > self.calls else 0.1)
        return IsotropicNormal(eta, s2, len(self.shape))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`my_conf/likelihood/breaking.yaml`, whose class is in `mine.py`."""
    (tmp_path / "mine.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "my_conf" / "likelihood"
    folder.mkdir(parents=True)
    (folder / "breaking.yaml").write_text("_target_: mine.Breaking\nshape: ${data.shape}\ncalls: 1000000\n")
    yield folder.parent
    sys.modules.pop("mine", None)


def test_a_component_of_ones_own_needs_no_fork(own, capsys):
    [run] = train("--config-dir", str(own), "likelihood=breaking", *QUICK, "logger=none")
    with pytest.raises(ValueError, match="packages=\\["):
        vae_lab.load(run)
    assert type(vae_lab.load(run, packages=["mine"]).likelihood).__name__ == "Breaking"
    main(["evaluate", f"run={run}", "packages=[mine]"])
    said = refused(capsys, "train", "--config-dir", str(own), "likelihood=braking")
    assert "breaking" in said and "did you mean" in said


def test_training_that_breaks_keeps_the_last_good_checkpoint(own, capsys):
    said = refused(capsys, "train", "--config-dir", str(own), "likelihood=breaking", "likelihood.calls=35", *QUICK[1:])
    # 13 steps and 1 validation batch an epoch: call 36 is the 34th step, in the third epoch
    assert re.search(r"error: rec not finite at step 34 \(epoch 2\); the last good checkpoint is .*last.ckpt", said)
    [run] = runs_in("outputs")
    assert all(v.isfinite().all() for v in weights(run).values())
    assert weights(run) and torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 26
    assert "exit code 1" in json.dumps(inspect(run)[0]) or '"exit_code": 1' in json.dumps(inspect(run)[0])


# --- the installed command


def test_completion():
    def complete(line):
        done = command(
            "-c", "from vae_lab.cli import main; main()", "-sc", "query=bash", COMP_LINE=line, COMP_POINT="99"
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert complete("vae-lab ") == ["train", "evaluate", "oracle", "wandb_workspace", "runs", "report"]
    assert complete("vae-lab runs ") == ["ls", "show", "rm", "retry", "watch"]
    assert {"ppca", "check"} <= set(complete("vae-lab oracle "))
    assert "preprocessing=" in complete("vae-lab oracle ppca pre")
    assert "likelihood=" in complete("vae-lab train lik")
    assert {"likelihood=bernoulli", "likelihood=gaussian"} <= set(complete("vae-lab train likelihood="))
    assert "split=" in " ".join(complete("vae-lab evaluate sp"))


def test_usage(capsys):
    main([])
    assert "train a VAE" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        main(["trian"])
    assert "did you mean 'train'?" in str(exit.value.code)


@pytest.mark.slow
def test_the_wheel_carries_its_configuration(tmp_path):
    build = command("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT))
    assert build.returncode == 0, build.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    install = command("-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    assert install.returncode == 0, install.stderr
    code = (
        "import sys; from vae_lab import cli, hints; print(hints.CONF, flush=True); cli.main(['train', *sys.argv[1:]])"
    )
    done = command("-c", code, *QUICK, "logger=none", PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(site / "vae_lab" / "conf")
    assert (site / "bin" / "vae-lab").exists() and len(runs_in("outputs")) == 1
    plugins = "import vae_lab.launch.pool, hydra_plugins.vae_lab.pool as plugin; print(plugin.__file__)"
    assert command("-c", plugins, PYTHONPATH=str(site)).stdout.strip() == str(site / "hydra_plugins/vae_lab/pool.py")
    done = command("-c", code, "-m", *QUICK, "seed=7", "logger=none", PYTHONPATH=str(site))
    assert done.returncode == 0 and "1 runs: 1 finished" in done.stdout, done.stderr


@pytest.mark.parametrize("words", [[], ["-m"]])
def test_a_folder_that_cannot_be_written_to_is_told_in_a_line(words):
    Path("file").touch()
    done = command("-m", "vae_lab.cli", "train", *words, "paths.outputs=file", "logger=none")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Not a directory" in done.stderr, done.stderr


def test_a_file_that_is_no_yaml_is_told_in_a_line():
    (folder := Path("mine/likelihood")).mkdir(parents=True)
    (folder / "broken.yaml").write_text("a: b: c")
    done = command("-m", "vae_lab.cli", "train", "--config-dir=mine", "likelihood=broken")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "broken.yaml" in done.stderr, done.stderr


def test_a_look_at_a_sweep_is_true_or_false():
    done = command("-m", "vae_lab.cli", "train", "-m", "check=maybe", "d=2,3")
    assert done.returncode == 1 and done.stderr == "error: check must be true or false, got 'maybe'\n"
