"""Trained models reach the values that theory or the literature gives."""

import json
from pathlib import Path

import pytest

from vae_lab import runs
from vae_lab.cli import main
from vae_lab.data.module import InMemory
from vae_lab.oracles import PPCA

pytestmark = pytest.mark.slow


def trained(*words, evaluate=None):
    """Trains; the run's folder, its metrics, and its scores under `evaluate`."""
    main(["train", *words, "logger=none", "callbacks=[checkpoint]"])
    [folder] = [path.parent for path in Path("outputs").glob("*/metrics.json")]
    metrics = json.loads((folder / "metrics.json").read_text())
    if evaluate is None:
        return folder, metrics, None
    main(["evaluate", f"run={folder}", *evaluate])
    [scores] = json.loads((folder / "evaluation.json").read_text()).values()
    return folder, metrics, scores


@pytest.mark.parametrize("s2", [0.2, 0.05])
def test_a_linear_vae_is_probabilistic_pca(s2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _, scores = trained(
        "experiment=linear_digits", f"likelihood.s2={s2}", evaluate=["split=train", "V=100", "checkpoint=last"]
    )
    x = InMemory(*runs.load_data(folder)).feed("train").x
    exact = PPCA.of(x).log_p(8, s2)
    # below by what is left to train, and above by no more than the noise of 100 samples for each of 1437 digits
    assert exact - 0.15 < scores["elbo"] < exact + 0.05


def test_a_linear_vae_on_fashion_mnist(data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = f"data.root={data_folder}"
    _, metrics, scores = trained("experiment=linear_fashion", root, evaluate=["split=train", "checkpoint=last"])
    assert metrics["train/elbo"] == pytest.approx(-740.24, abs=0.10)
    assert scores["elbo"] == pytest.approx(-740.24, abs=0.10)
    assert scores["active_units"] == 8
    assert scores["kl"] == pytest.approx(5.33, rel=0.02)


def test_kw13s_network_on_binarised_fashion_mnist(data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, metrics, _ = trained("experiment=kw13_fashion", f"data.root={data_folder}")
    assert metrics["test/elbo"] >= -251
