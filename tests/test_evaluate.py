"""The command `evaluate`, as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_train import flatten, inspect, refused, runs_in, train, without_account

from vae_lab import runs
from vae_lab.cli import main
from vae_lab.commands import evaluate
from vae_lab.evaluation.protocol import Protocol
from vae_lab.runs import record

SMALL = ["evaluation.max_examples=12", "evaluation.K=50", "evaluation.m=50", "evaluation.V=5"]
SMALL += ["evaluation.temperatures=4", "evaluation.chains=4", "evaluation.leapfrog=2", "evaluation.refine_steps=3"]
ALL = list(evaluate.ESTIMATORS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_account(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with W&B, without an account."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_account(patch)
        [found] = train("trainer.max_epochs=2", "callbacks=[checkpoint]")
    return folder / found


@pytest.fixture
def plain():
    """A run without W&B."""
    [found] = train("trainer.max_epochs=1", "callbacks=[checkpoint]", "logger=none")
    return found


def kept(run):
    return json.loads((run / "evaluation.json").read_text())


def test_everything_at_once(run, capsys):
    main(["evaluate", f"run={run}", f"evaluation.estimators=[{','.join(ALL)}]", *SMALL])
    said, found = capsys.readouterr().out, kept(run)
    assert [entry["protocol"]["estimator"] for entry in found.values()] == ALL
    metrics = json.loads((run / "metrics.json").read_text())
    assert found["split=test V=1 checkpoint=best"]["elbo"] == pytest.approx(metrics["test/elbo"], rel=1e-6)
    assert f"{metrics['test/elbo']:.3f} ± {metrics['test/elbo_se']:.3f}" in said
    by_name = {entry["protocol"]["estimator"]: entry for entry in found.values()}
    for entry in by_name.values():
        protocol = Protocol(**entry["protocol"])
        assert protocol.n == (360 if protocol.estimator == "elbo" else 12) and protocol.data == "Digits"
    iwae, parts, information = by_name["importance"], by_name["gaps"], by_name["information"]
    assert iwae["log_p_total"] == pytest.approx(12 * iwae["log_p"])  # (17)
    errors = sum(parts[f"{name}_sampling_se"] for name in ("approximation", "amortisation", "kl_posterior"))
    whole = parts["approximation"] + parts["amortisation"]
    assert whole == pytest.approx(parts["kl_posterior"], abs=3 * errors)
    assert information["log_n"] == pytest.approx(np.log(12)) and information["mutual_information"] <= np.log(12)
    assert by_name["bdmc"]["gap"] == pytest.approx(by_name["bdmc"]["upper"] - by_name["bdmc"]["lower"])
    assert 0 < by_name["images"]["mse"] < 1 and -1 <= by_name["images"]["ssim"] <= 1
    assert "naive_mc has not converged" in said  # 50 draws

    # the same again gives the same; and stays beside what other settings gave
    main(["evaluate", f"run={run}", "evaluation.estimators=[importance]", *SMALL])
    main(
        [
            "evaluate",
            f"run={run}",
            "evaluation.estimators=[importance]",
            *SMALL,
            "seed=1",
            "evaluation.max_memory=999999",
        ]
    )
    again = kept(run)
    assert {key: again[key] for key in found} == found and len(again) == len(found) + 1
    other = again["importance split=test K=50 n=12 checkpoint=best seed=1"]
    assert other["log_p"] != iwae["log_p"] and other["protocol"]["seed"] == 1


def test_wandbs_summary_holds_the_scores(run):
    before = len(record.wandb_folders(run))
    main(["evaluate", f"run={run}", *SMALL, "split=val"])
    folders = record.wandb_folders(run)
    files = [file for folder in folders for file in folder.glob("*.wandb")]
    assert len(files) == before + 1 and len({file.name for file in files}) == 1  # the same id: `wandb sync` joins them
    newest = max(files, key=lambda file: (file.stat().st_mtime, file.parent.name))
    summary = flatten(inspect(run, newest)[0])
    scores = kept(run)["importance split=val K=50 n=12 checkpoint=best"]

    def told(name):
        [value] = {v for k, v in summary.items() if k.endswith(f"evaluation/val/importance/{name}")}
        return value

    assert told("log_p") == pytest.approx(scores["log_p"])
    assert told("protocol") == "importance split=val K=50 n=12 checkpoint=best"


def test_wandb_that_fails_is_one_line(run, capsys, monkeypatch):
    import wandb

    def broken(*_, **__):
        raise wandb.errors.CommError("no\nnetwork")

    monkeypatch.setattr(wandb, "init", broken)
    main(["evaluate", f"run={run}", *SMALL])
    assert "warning: W&B was not told: no\n" in capsys.readouterr().out


def test_a_run_without_wandb_gets_none(plain):
    main(["evaluate", f"run={plain}", *SMALL])
    assert not record.wandb_folders(plain) and len(kept(plain)) == 2


def test_an_interrupted_evaluation_keeps_what_it_has(plain, monkeypatch):
    def interrupted(task):
        raise KeyboardInterrupt

    monkeypatch.setitem(evaluate.ESTIMATORS, "ais", evaluate.ESTIMATORS["ais"]._replace(compute=interrupted))
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", f"run={plain}", "evaluation.estimators=[elbo,ais,importance]", *SMALL])
    assert stopped.value.code == 130
    assert list(kept(plain)) == ["split=test V=1 checkpoint=best"]
    assert not [path for path in plain.iterdir() if path.name.startswith(".")]


def test_a_run_may_move_to_other_data(capsys):
    x = np.random.default_rng(0).random((60, 10), dtype=np.float32)
    np.save("x.npy", x), np.save("y.npy", 1 - x / 2), np.save("z.npy", x[:, :5])
    quick = ["trainer.max_epochs=1", "callbacks=[checkpoint]", "logger=none"]
    [run] = train("data=arrays", "data.root=x.npy", *quick)
    Path("x.npy").rename("moved.npy")
    assert "x.npy" in refused(capsys, "evaluate", f"run={run}")
    main(["evaluate", f"run={run}", "data.root=moved.npy"])
    main(["evaluate", f"run={run}", "data.root=y.npy", "evaluation.estimators=[elbo]"])
    found, metrics = kept(run), json.loads((run / "metrics.json").read_text())
    moved = found["split=test V=1 checkpoint=best data.root=moved.npy"]
    assert moved["elbo"] == pytest.approx(metrics["test/elbo"], rel=1e-6)
    assert found["split=test V=1 checkpoint=best data.root=y.npy"]["elbo"] != moved["elbo"]
    assert moved["protocol"]["data"] == "Arrays moved.npy"
    capsys.readouterr()
    assert "as one datum of the data has ([5]), got [10]" in refused(
        capsys, "evaluate", f"run={run}", "data.root=z.npy"
    )


WRONG = {
    "evaluation.K=0": "evaluation.K must be a whole number >= 1, got 0",
    "evaluation.m=0": "evaluation.m must be a whole number >= 1, got 0",
    "evaluation.V=x": "evaluation.V must be a whole number >= 1, got 'x'",
    "evaluation.max_examples=0": "evaluation.max_examples must be a whole number >= 1, got 0",
    "evaluation.max_memory=-1": "evaluation.max_memory must be a whole number >= 1, got -1",
    "evaluation.temperatures=0": "evaluation.temperatures must be a whole number >= 1, got 0",
    "evaluation.refine_lr=0": "evaluation.refine_lr must be a finite number > 0, got 0",
    "evaluation.estimators=[elbo,importence]": "got 'importence'; did you mean 'importance'?",
    "evaluation.estimators=[]": "evaluation.estimators must be a list, as [elbo,importance], got []",
    "evaluation.estimators=ais": "evaluation.estimators must be a list, as [elbo,importance], got 'ais'",
    "evaluation.k=5": "no key 'evaluation.k'",
    "split=tset": "split must be one of train, val, test, got 'tset'; did you mean 'test'?",
    "seed=-1": "seed must be a whole number >= 0, got -1",
    "checkpoint=first": "there: best, last",
    "data.root=/elsewhere": "data.root must be null for vae_lab.data.sources.Digits, which has none",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_request_is_one_line_before_anything_is_computed(words, run, capsys, monkeypatch, unchecked):
    never = lambda task: pytest.fail("it was computed")  # noqa: E731
    monkeypatch.setattr(evaluate, "ESTIMATORS", {k: v._replace(compute=never) for k, v in evaluate.ESTIMATORS.items()})
    assert WRONG[words] in refused(capsys, "evaluate", f"run={run}", *words.split())


def test_a_run_without_weights(plain, capsys):
    for checkpoint in (plain / "checkpoints").iterdir():
        checkpoint.unlink()
    assert "checkpoint 'best' is not in" in refused(capsys, "evaluate", f"run={plain}")


PRIOR = """
import torch
from torch.distributions import Distribution, kl_divergence, register_kl
from vae_lab.distributions import DiagonalNormal
from vae_lab.interfaces import Prior

class Shapeless(Distribution):
    def __init__(self, d):
        super().__init__(torch.Size(), torch.Size([d]), validate_args=False)

@register_kl(DiagonalNormal, Shapeless)
def _kl(q, p):
    return (q.mu**2 + q.sigma).sum(-1)

class Penalty(Prior):
    def __init__(self, d):
        super().__init__()
        self.d = d

    def forward(self, encoder):
        return Shapeless(self.d)
"""


def test_a_prior_without_a_density(plain, tmp_path, monkeypatch, capsys):
    (tmp_path / "penalties.py").write_text(PRIOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = yaml.safe_load((plain / "config.yaml").read_text())
    runs.write(plain / "config.yaml", config | {"prior": {"_target_": "penalties.Penalty", "d": 2}})
    trusting = [f"run={plain}", "packages=[penalties]"]
    for name in ("importance", "ais", "bdmc", "gaps", "information"):
        said = refused(capsys, "evaluate", *trusting, f"evaluation.estimators=[elbo,{name}]")
        assert "prior must have a density (log_prob), got Shapeless without one" in said
    assert not (plain / "evaluation.json").exists()
    main(["evaluate", *trusting, "evaluation.estimators=[elbo]"])  # its KL is known


def test_images_want_images(capsys):
    np.save("x.npy", np.random.default_rng(0).random((60, 10), dtype=np.float32))
    [run] = train("data=arrays", "data.root=x.npy", "trainer.max_epochs=1", "callbacks=[checkpoint]", "logger=none")
    said = refused(capsys, "evaluate", f"run={run}", "evaluation.estimators=[elbo,images]")
    assert "images needs data [C, H, W], got [10]" in said and runs_in("outputs") == [run]
