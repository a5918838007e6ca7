"""A run's folder: the model comes back from it whole, and nothing in it is ever executed."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml

import vae_lab
from vae_lab import decoders, encoders, likelihoods, posteriors, priors, runs
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

SHAPE, D = [1, 4, 4], 2


def make_vae():
    torch.manual_seed(0)
    return VAE(
        encoders.MLP(SHAPE, D, [5], "tanh"),
        decoders.MLP(SHAPE, D, [5], "tanh"),
        likelihoods.Gaussian(SHAPE, 0.3),
        priors.StandardNormal(D),
    )


def make_config():
    mlp = {"shape": SHAPE, "d": D, "hidden": [5], "activation": "tanh"}
    return {
        "seed": 3,
        "encoder": {"_target_": "vae_lab.encoders.MLP", **mlp},
        "decoder": {"_target_": "vae_lab.decoders.MLP", **mlp},
        "likelihood": {"_target_": "vae_lab.likelihoods.Gaussian", "shape": SHAPE, "s2": 0.1},
        "prior": {"_target_": "vae_lab.priors.StandardNormal", "d": D},
        "objective": {"_target_": "vae_lab.objectives.Elbo", "V": 7},
        "data": {"_target_": "vae_lab.data.sources.Digits", "shape": [8, 8], "validation": 5, "test": 6},
        "preprocessing": {"_target_": "vae_lab.data.preprocessing.Raw"},
        "sampling": {
            "_target_": "vae_lab.data.sampling.Shuffled",
            "batch_size": 10,
            "eval_batch_size": 20,
            "block": 3,
        },
    }


def save(folder, vae, name="best"):
    path = folder / "checkpoints" / f"{name}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"vae.{k}": v for k, v in vae.state_dict().items()}, "epoch": 1}, path)
    return path


@pytest.fixture
def folder(tmp_path):
    runs.write(tmp_path / "run" / runs.CONFIG, make_config())
    save(tmp_path / "run", make_vae())
    return tmp_path / "run"


def refused(load, *arguments, **more):
    """The message with which `load` refuses: one line."""
    with pytest.raises(ValueError) as error:
        load(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


# What comes back


def test_the_model_comes_back(folder):
    vae, loaded = make_vae(), runs.load(str(folder))
    assert not loaded.training
    assert loaded.state_dict().keys() == vae.state_dict().keys()
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in vae.state_dict().items())
    assert loaded.likelihood.s2 == torch.tensor(0.3)  # the checkpoint's, as one that is learned would be
    z = torch.randn(5, D)
    assert torch.equal(loaded.sample(z), vae.sample(z))


def test_the_package_has_load():
    assert vae_lab.load is runs.load
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        vae_lab.laod  # noqa: B018


def test_the_checkpoint_is_chosen(folder):
    vae = make_vae()
    with torch.no_grad():
        vae.decoder.net[0].bias += 1
    save(folder, vae, "last")
    loaded = runs.load(folder, checkpoint="last")
    assert torch.equal(loaded.decoder.net[0].bias, vae.decoder.net[0].bias)
    assert not torch.equal(runs.load(folder).decoder.net[0].bias, vae.decoder.net[0].bias)


@pytest.mark.parametrize(
    ("posterior", "more"),
    [(posteriors.Diagonal, {}), (posteriors.Full, {}), (posteriors.Flow, {"transforms": 2, "hidden": [4]})],
)
@pytest.mark.parametrize(
    ("prior", "less"), [(priors.Mixture, {}), (priors.Vamp, {"shape": SHAPE})], ids=["mixture", "vamp"]
)
def test_a_parts_part_comes_back(tmp_path, posterior, more, prior, less):
    config = make_config()
    config["encoder"]["posterior"] = {"_target_": f"vae_lab.posteriors.{posterior.__name__}", "d": D, **more}
    config["prior"] = {"_target_": f"vae_lab.priors.{prior.__name__}", "d": D, "components": 3, **less}
    vae = VAE(
        encoders.MLP(SHAPE, D, [5], "tanh", posterior(d=D, **more)),
        decoders.MLP(SHAPE, D, [5], "tanh"),
        likelihoods.Gaussian(SHAPE, 0.3),
        prior(d=D, components=3, **less),
    )
    runs.write(tmp_path / runs.CONFIG, config)
    save(tmp_path, vae)
    loaded, z = runs.load(tmp_path), torch.randn(5, D)
    assert type(loaded.encoder.posterior) is posterior
    assert torch.equal(loaded.sample(z), vae.sample(z))
    batch = Batch(torch.rand(4, *SHAPE), torch.arange(4))
    q, again = vae.encoder(batch), loaded.encoder(batch)
    assert torch.equal(again.log_prob(z[:4]), q.log_prob(z[:4]))


def test_data_and_objective_come_back(folder):
    source, preprocessing, sampling, seed = runs.load_data(folder)
    assert (source.shape, source.validation, source.test) == ((8, 8), 5, 6)
    assert type(preprocessing).__name__ == "Raw" and sampling.eval_batch_size == 20 and seed == 3
    assert runs.load_objective(folder).samples == 7


# What is refused


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def hostile(marker):
    """Changes to a config, each of which would make the file `marker` if it were obeyed."""
    shell = f"touch {marker}"
    call = {"_target_": "os.system", "command": shell}
    return {
        "os.system": {"encoder": call},
        "eval": {"encoder": {"_target_": "builtins.eval", "_args_": [f"__import__('os').system({shell!r})"]}},
        "our subprocess.run": {"encoder": {"_target_": "vae_lab.runs.subprocess.run", "args": ["touch", str(marker)]}},
        "our Popen": {"encoder": {"_target_": "vae_lab.runs.subprocess.Popen", "args": ["touch", str(marker)]}},
        "our function": {"encoder": {"_target_": "vae_lab.runs.write", "path": str(marker), "content": {}}},
        "Hydra's": {"encoder": {"_target_": "hydra.utils.instantiate", "config": call}},
        "a lookalike": {"encoder": {"_target_": "vae_lab_evil.Encoder"}},
        "nested": {"encoder": make_config()["encoder"] | {"activation": call}},
        "nested in a list": {"encoder": make_config()["encoder"] | {"hidden": [5, [call]]}},
        "nested in arguments": {"encoder": {"_target_": "vae_lab.encoders.MLP", "_args_": [call, D, [5], "tanh"]}},
        "in the prior": {"prior": call},
        "not a part": {"encoder": {"_target_": "vae_lab.vae.VAE"}},
        "another part": {"encoder": make_config()["decoder"]},
        "abstract": {"encoder": {"_target_": "vae_lab.interfaces.Encoder"}},
        "a partial": {"encoder": make_config()["encoder"] | {"_partial_": True}},
        "not a name": {"encoder": {"_target_": ["os", "system"]}},
        "no target": {"encoder": {"command": shell}},
        "nothing": {"encoder": None},
        "environment": {"encoder": make_config()["encoder"] | {"activation": "${oc.env:HOME}"}},
        "interpolated target": {"x": "os.system", "encoder": call | {"_target_": "${x}"}},
        "no such class": {"encoder": {"_target_": "vae_lab.encoders.MPL"}},
        "no such argument": {"encoder": make_config()["encoder"] | {"widths": [5]}},
        "a wrong argument": {"encoder": make_config()["encoder"] | {"hidden": "x"}},
    }


@pytest.mark.parametrize("what", hostile(""))
def test_hostile_configs_are_refused(folder, tmp_path, unchecked, what):
    marker = tmp_path / "marker"
    change = hostile(marker)[what]
    runs.write(folder / runs.CONFIG, make_config() | change)
    message = refused(runs.load, folder)
    assert not marker.exists()
    assert next(part for part in change if part != "x") in message


@pytest.mark.parametrize("part", ["data", "preprocessing", "sampling", "objective"])
def test_other_parts_are_as_safe(folder, tmp_path, part):
    marker = tmp_path / "marker"
    runs.write(folder / runs.CONFIG, make_config() | {part: {"_target_": "os.system", "command": f"touch {marker}"}})
    message = refused(runs.load_objective if part == "objective" else runs.load_data, folder)
    assert message.startswith(f"{part}._target_ must be a class of vae_lab, got 'os.system'")
    assert not marker.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{marker}]", "!!python/name:os.system"])
def test_yaml_tags_are_refused(folder, tmp_path, tag):
    marker = tmp_path / "marker"
    (folder / runs.CONFIG).write_text(yaml.safe_dump(make_config()) + "x: " + tag.format(marker=marker) + "\n")
    assert str(folder) in refused(runs.load, folder)
    assert not marker.exists()


@pytest.mark.parametrize("where", ["alone", "beside the weights", "among the weights"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_pickles_are_refused(folder, tmp_path, where, form):
    marker = tmp_path / "marker"
    state = {f"vae.{k}": v for k, v in make_vae().state_dict().items()}
    payload = Payload(marker)
    content = {
        "alone": payload,
        "beside the weights": {"state_dict": state, "x": payload},
        "among the weights": {"state_dict": state | {"vae.x": payload}},
    }[where]
    path = folder / "checkpoints" / "best.ckpt"
    torch.save(content, path) if form == "torch" else path.write_bytes(pickle.dumps(content, protocol=2))
    assert str(path) in refused(runs.load, folder)
    assert not marker.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the payload was live


def test_other_packages_must_be_trusted(folder, tmp_path, monkeypatch):
    package = tmp_path / "my_parts"
    package.mkdir()
    (package / "__init__.py").write_text("from my_parts.deep import Mine, other\nfrom os import system\n")
    (package / "deep.py").write_text(
        "from typing import final\n"
        "from torch import nn\n"
        "from vae_lab.encoders import MLP\n"
        "from vae_lab.interfaces import Encoder\n"
        "def other(**_): raise AssertionError\n"
        "class Mine(Encoder):\n"
        "    def __init__(self, shape, d, hidden, activation):\n"
        "        super().__init__()\n"
        "        self.shape, self.d, self.net = tuple(shape), d, MLP(shape, d, hidden, activation).net\n"
        "    def forward(self, batch): raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config()

    def choose(target):
        config["encoder"]["_target_"] = target
        runs.write(folder / runs.CONFIG, config)

    for name in ("my_parts.Mine", "my_parts.deep.Mine"):
        choose(name)
        assert "packages=[...]" in refused(runs.load, folder)
        assert "packages=[...]" in refused(runs.load, folder, packages=["my", "my_parts_too"])
        assert type(runs.load(folder, packages=["my_parts"]).encoder).__name__ == "Mine"
    for name in ("my_parts.system", "my_parts.other", "my_parts.deep.nn.Linear", "my_parts.nothing"):
        choose(name)
        assert name in refused(runs.load, folder, packages=["my_parts"])


# Broken folders


def test_missing_folder(tmp_path):
    assert str(tmp_path / "none") in refused(runs.load, tmp_path / "none")
    assert "is not the folder of a run" in refused(runs.load, tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"a: [", b"\xff\xfe\x00", b"seed: 1\n"], ids=str)
def test_broken_config(folder, content):
    (folder / runs.CONFIG).write_bytes(content)
    assert "config.yaml" in refused(runs.load, folder)


def test_missing_checkpoint(folder):
    save(folder, make_vae(), "last")
    (folder / "checkpoints" / "best.ckpt").unlink()
    assert refused(runs.load, folder).endswith("there: last")
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert refused(runs.load, folder).endswith("there: none")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_torn_checkpoint(folder, share):
    path = folder / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in refused(runs.load, folder)


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({}, "state_dict"),
        ([], ""),
        ({"state_dict": {}}, "encoder.net.0.weight"),
        ({"state_dict": None}, ""),
    ],
)
def test_foreign_checkpoint(folder, content, culprit):
    path = folder / "checkpoints" / "best.ckpt"
    torch.save(content, path)
    message = refused(runs.load, folder)
    assert str(path) in message and culprit in message


def test_checkpoint_of_another_model(folder):
    config = make_config()
    config["decoder"]["hidden"] = [6]
    runs.write(folder / runs.CONFIG, config)
    message = refused(runs.load, folder)
    assert "best.ckpt" in message and "decoder.net.0.weight" in message


# Writing


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_write_comes_back(tmp_path, name):
    content = {"b": 1.5, "a": {"x": [1, None, "é: ~"]}}
    path = tmp_path / "new" / "folders" / name
    runs.write(path, content)
    assert yaml.safe_load(path.read_text()) == content  # JSON is YAML
    assert path.read_text().endswith("\n") and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_write_is_all_or_nothing(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    runs.write(path, {"old": 1})
    before = path.read_bytes()
    original = getattr(Path, step)

    def fail(self, argument, *more):
        if step == "write_bytes":
            original(self, argument[:3])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, step, fail)
    with pytest.raises(OSError, match="the disk is full"):
        runs.write(path, {"new": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_refuses_what_cannot_be_written(tmp_path):
    path = tmp_path / "a.yaml"
    runs.write(path, {"old": 1})
    with pytest.raises(yaml.YAMLError):
        runs.write(path, {"new": object()})
    assert path.read_text() == "old: 1\n" and list(tmp_path.iterdir()) == [path]


def test_small_helpers():
    assert runs.flat({"a": 1, "b": {"c": {"d": [2]}, "e": None}}) == {"a": 1, "b.c.d": [2], "b.e": None}
    numbers = runs.finite({"a": torch.tensor(2.0), "b": float("nan"), "c": float("-inf"), "d": 3})
    assert numbers == {"a": 2.0, "b": None, "c": None, "d": 3.0}
    told = runs.environment(["d=3"])
    assert told["overrides"] == ["d=3"] and told["packages"]["torch"] == torch.__version__
