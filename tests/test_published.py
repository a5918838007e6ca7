"""Trained models reach the values that theory or the literature gives: docs/results.md, with its commands, but for the
one that the README has too, whose test looks at it."""

import json
from pathlib import Path

import pytest
import torch

from vae_lab import runs
from vae_lab.cli import main
from vae_lab.data.module import InMemory
from vae_lab.oracles import PPCA

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(*words, evaluate=None):
    """Trains; the run's folder, its metrics, and its scores under `evaluate`."""
    main(["train", *words, "logger=none", "callbacks=[checkpoint]", "paths.outputs=outputs"])
    folder = max(
        (path.parent for path in Path("outputs").glob("*/metrics.json")), key=lambda path: path.stat().st_mtime
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    if evaluate is None:
        return folder, metrics, None
    main(["evaluate", f"run={folder}", "evaluation.estimators=[elbo]", *evaluate])
    [scores] = json.loads((folder / "evaluation.json").read_text()).values()
    return folder, metrics, scores


def weights(folder):
    """The model's parameters and buffers after the last step."""
    return runs.load(folder, checkpoint="last").state_dict()


def training_data(folder):
    return InMemory(*runs.load_data(folder)).feed("train").rows.x


LAST = ["split=train", "checkpoint=last"]


@pytest.mark.parametrize("s2", [0.2, 0.05])
def test_a_linear_vae_is_probabilistic_pca(s2):
    folder, _, scores = trained("experiment=linear_digits", f"likelihood.s2={s2}", evaluate=[*LAST, "V=100"])
    exact = PPCA.of(training_data(folder)).log_p(8, s2)
    # below by what is left to train, and above by no more than the noise of 100 samples for each of 1437 digits
    assert exact - 0.15 < scores["elbo"] < exact + 0.05


@pytest.mark.parametrize(
    ("words", "elbo", "off", "units", "kl"),
    [
        ([], -740.24, 0.10, [8], 5.33),
        (["likelihood.s2=0.5"], -481.51, 0.10, [13, 14], 8.99),  # lambda_13 and lambda_14 are within a tenth of s2
        (["likelihood.s2=0.1", "d=10"], 64.88, 0.15, [10], None),
    ],
)
def test_a_linear_vae_on_fashion_mnist(words, elbo, off, units, kl, data_folder):
    root = f"data.root={data_folder / 'fashion-mnist'}"
    _, metrics, scores = trained("experiment=linear_fashion", root, *words, evaluate=LAST)
    assert metrics["train/elbo"] == pytest.approx(elbo, abs=off)
    assert scores["elbo"] == pytest.approx(elbo, abs=off)
    assert scores["active_units"] in units
    assert kl is None or scores["kl"] == pytest.approx(kl, rel=0.02)


def test_s2_in_closed_form(data_folder):
    d, least, s2 = 20, 395.5, 0.0191879
    root = f"data.root={data_folder / 'fashion-mnist'}"
    words = ["experiment=linear_fashion", "likelihood=gaussian_optimal", "~likelihood.s2", f"d={d}", root]
    folder, metrics, _ = trained(*words)
    ppca = PPCA.of(training_data(folder))
    assert ppca.best_s2(d) == pytest.approx(s2, rel=1e-5)
    assert least <= metrics["train/elbo"] <= ppca.log_p(d, s2)
    assert weights(folder)["likelihood.s2"].item() == pytest.approx(s2, rel=0.01)


def test_eq20_trains_the_same_weights_whatever_s2(data_folder):
    root = f"data.root={data_folder / 'fashion-mnist'}"
    words = ["experiment=linear_fashion", "objective=note_eq20", root, "trainer.max_epochs=3"]
    found = []
    for s2 in (0.01, 0.1, 1):
        folder, _, _ = trained(*words, f"likelihood.s2={s2}")
        found.append({k: v for k, v in weights(folder).items() if k != "likelihood.s2"})
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


def test_a_network_beats_the_best_linear_model(data_folder):
    root = f"data.root={data_folder / 'fashion-mnist'}"
    words = ["experiment=kw13_fashion", "preprocessing=raw", "likelihood=gaussian_optimal", root]
    folder, metrics, _ = trained(*words)
    assert metrics["test/elbo"] >= 475 > PPCA.of(training_data(folder)).log_p(20, 0.0191879)
