"""Look before you leap: `check=true` says what is wrong and what a run takes, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vae_lab import hints
from vae_lab.cli import main, register_resolvers
from vae_lab.commands import check, training
from vae_lab.launch import pool


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(hints.CONF), version_base="1.3"):
        return compose("train", ["logger=none", "paths.run=nowhere", *overrides])


def test_a_cost_is_that_of_the_model():
    small = ["encoder=linear", "decoder=linear", "trainer.max_epochs=7"]
    found = check.cost(composed(*small))
    D, d = 64, 2
    vae = training.build_vae(composed(*small))
    assert found.parameters == sum(p.numel() for p in vae.parameters()) >= 2 * D * d
    assert found.steps == 7 * 13  # 1257 data in batches of 100
    floats = 4 * found.parameters + 1257 * D  # weights, gradients, two moments; the data
    kept = found.memory / 4 - floats
    assert 100 * D <= kept <= 100 * D * 20  # a batch of 100 keeps x, and a few values of its size
    ten = check.cost(composed(*small, "objective.V=10", "trainer.max_steps=5"))
    assert ten.parameters == found.parameters and ten.memory > found.memory and ten.steps == 5
    assert found.seconds == found.step * found.steps > 0


def test_alike_are_measured_once():
    a, b, c, d = (
        check.architecture(composed(*words))
        for words in (["seed=1"], ["likelihood.s2=0.5", "optimizer.lr=0.1"], ["d=3"], ["objective.V=2"])
    )
    assert a == b and len({a, c, d}) == 3


@pytest.mark.parametrize("asked", ["+check=true", "check=true"])
def test_nothing_is_trained_and_nothing_written(asked, monkeypatch, capsys):
    monkeypatch.setattr(pool, "start", lambda *a: pytest.fail("a process was started"))
    monkeypatch.setattr(training, "fit", lambda *a: pytest.fail("it was trained"))
    before = torch.get_rng_state()
    main(["train", "d=3", asked])
    assert "this run would take" in capsys.readouterr().out and not any(Path().iterdir())
    main(["train", "-m", "d=2,3", "seed=0,1", asked])
    said = capsys.readouterr().out
    assert "4 runs: 4 new; 2 architectures" in said and not any(Path().iterdir())
    torch.set_rng_state(before)


def test_what_only_the_data_tell_is_told_of_its_cell(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "-m", "likelihood=gaussian,categorical", "check=true"])
    assert str(stop.value).startswith("error: cell 2 of 2 (likelihood=categorical check=True): likelihood: ")
    assert "use likelihood.levels=17" in str(stop.value) and "wrong" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "likelihood=categorical", "check=true"])
    assert "use likelihood.levels=17" in capsys.readouterr().err and not any(Path().iterdir())
