"""Every YAML file under `conf/` composes, builds, and says just what its class takes."""

import inspect
import shutil

import hydra
import numpy as np
import pytest
import wandb
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from vae_lab import hints
from vae_lab.cli import COMMANDS, register_resolvers
from vae_lab.data.preprocessing import Preprocessing
from vae_lab.data.sampling import Sampling
from vae_lab.data.sources import Source
from vae_lab.interfaces import Decoder, Encoder, Likelihood, Posterior, Prior
from vae_lab.objectives import Objective

GROUPS = hints.groups("train")
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]
EXPERIMENTS = GROUPS["experiment"]


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """Composes `train.yaml` as the command does, without running anything."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    np.save(tmp_path / "data.npy", np.zeros((20, 4, 5), np.uint8))
    register_resolvers()

    def config(*overrides):
        with initialize_config_dir(str(hints.CONF), version_base="1.3"):
            cfg = compose("train", [f"paths.run={tmp_path}", *overrides])
        if "logger=wandb" in overrides:
            cfg.logger.name = "x"  # else the name of the command that Hydra runs
        if "data=arrays" in overrides:
            cfg.data.root = str(tmp_path / "data.npy")
        if "data=frey_face" in overrides:
            cfg.data.root = str(tmp_path)
        return cfg

    return config


def built(cfg, key):
    if key == "decoder":
        cfg.decoder.outputs = built(cfg, "likelihood").outputs
    if key == "encoder" and "n" in cfg.encoder:
        cfg.encoder.n = 4
    return hydra.utils.instantiate(OmegaConf.select(cfg, key), _convert_="all")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_builds(composed, group, option):
    chosen = f"{group}=[{option}]" if group == "callbacks" else f"{group}={option}"
    cfg = composed(chosen, *([] if group == "logger" else ["logger=none"]))
    if group == "experiment":
        for part in ("data", "preprocessing", "sampling", "encoder", "decoder", "likelihood", "prior", "objective"):
            built(cfg, part)
        return
    node, part = hints.read(f"{group}/{option}"), built(cfg, f"{group}.{option}" if group == "callbacks" else group)
    if node.get("_partial_"):
        assert part.func is get_object(node["_target_"])
    else:
        assert isinstance(part, get_object(node["_target_"])) if node else not part


def files():
    """Every file that describes an object."""
    for group, option in OPTIONS:
        node = hints.read(f"{group}/{option}")
        if "_target_" in node:
            yield pytest.param(node, id=f"{group}/{option}")


@pytest.mark.parametrize("node", list(files()))
def test_keys_are_the_constructors(node):
    parameters = dict(inspect.signature(get_object(node["_target_"])).parameters)
    keys = {k for k in node if not k.startswith("_")}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        parameters |= inspect.signature(wandb.init).parameters  # where the W&B logger hands on what it does not know
    assert keys <= set(parameters)
    if node["_target_"].startswith("vae_lab."):
        required = {k for k, p in parameters.items() if p.default is p.empty}
        assert required <= keys


def test_every_class_has_one_file():
    """A class without one could not be chosen."""
    aside = ("experiment", "trainer")  # two of these build the same Trainer, on one device and on several
    targets = [hints.read(f"{group}/{option}").get("_target_") for group, option in OPTIONS if group not in aside]
    assert len(targets) == len(set(targets))
    for kind in (Encoder, Posterior, Decoder, Likelihood, Prior, Objective, Source, Preprocessing, Sampling):
        classes = {f"{c.__module__}.{c.__name__}" for c in kind.__subclasses__()}
        ours = {name for name in classes if name.startswith("vae_lab.")}
        aside = ("vae_lab.evaluation.", "vae_lab.proofs.")  # what these make for themselves
        assert {name for name in ours if not name.startswith(aside)} <= set(targets)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_differences(composed, name):
    node = hints.read(f"experiment/{name}")
    changed = []
    for entry in node.pop("defaults", []):
        [(key, option)] = entry.items()
        assert key.startswith("override /")
        changed.append(f"{key.removeprefix('override /')}={option}")
    # every value differs from what would hold without it
    alone = composed(*changed, "logger=none")
    for key, value in leaves(node):
        assert OmegaConf.select(alone, key) != value, f"{key}={value} is the default"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            assert isinstance(value, str | int | float | bool | list | None)
            yield f"{prefix}{key}", value


# What the command line says about them


def test_hints_know_every_group():
    folders = {path.name for path in hints.CONF.iterdir() if path.is_dir()} - {"hydra"}  # launchers and sweepers
    assert set(GROUPS) == folders
    assert all(GROUPS.values())
    usage, keys = hints.usage("train", COMMANDS["train"]), hints.keys("train")
    for group, option in OPTIONS:
        assert group in usage and option in usage
        assert group in keys or group == "experiment"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    usage = hints.usage(command, COMMANDS[command])
    assert usage.startswith(f"vae-lab {command}: ")
    elsewhere = {"defaults", "hydra", "paths", *hints.groups(command)}
    for key in (k for k in hints.read(hints.root(command)) if k not in elsewhere):
        assert f"\n  {key}=" in usage or f"\n  {key}." in usage


GOOD = [
    "d=8",
    "d=2,8,32",
    "likelihood=bernoulli",
    "likelihood=gaussian,bernoulli",
    "likelihood.s2=0.01",
    "objective.V=10",
    "callbacks=[checkpoint]",
    "callbacks.pictures.every_n_epochs=1",
    "trainer.max_epochs=3",
    "optimizer.betas.0=0.5",
    "logger=none",
    "callbacks=[]",
    "callbacks=[checkpoint, progress]",
    "encoder=[mlp]",
    "logger.settings.console=auto",
    "experiment=linear_digits",
    "paths.outputs=/tmp/a=b",
    "+extra.key=1",
    "~logger.tags",
    "hydra.job.name=x",
    "encoder._target_=my.own.Encoder",
    "--multirun",
]


@pytest.mark.parametrize("argument", GOOD)
def test_valid_overrides_pass(argument):
    hints.check("train", [argument])


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("likelihood=nope", None),
        ("likelihood=bernouli", "bernoulli"),
        ("likelihood=gaussian,bernouli", "bernoulli"),
        ("encoder=mpl", "mlp"),
        ("modle.d=2", None),
        ("sed=1", "seed"),
        ("likelihood.s3=1", "likelihood.s2"),
        ("likelihod=bernoulli", "likelihood"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("callbacks.picture.every_n_epochs=1", "callbacks.pictures.every_n_epochs"),
        ("experiment=linear_digit", "linear_digits"),
    ],
)
def test_typos_are_refused(argument, meant):
    with pytest.raises(ValueError) as refused:
        hints.check("train", ["d=2", argument])
    message = str(refused.value)
    key = argument.partition("=")[0]
    assert message.startswith(key) and "\n" not in message
    assert meant is None or f"did you mean {meant!r}?" in message
    assert all(option in message for option in GROUPS.get(key, []))


def test_what_an_experiment_chooses_is_known():
    hints.check("train", ["experiment=kw13_fashion", "preprocessing.seed=3", "encoder.hidden=[5]"])
    hints.check("train", ["experiment=kw13_fashion", "likelihood=gaussian", "likelihood.s2=1"])
    with pytest.raises(
        ValueError, match=r"^likelihood.s2=1: no key 's2' in the chosen likelihood; it belongs to .*gauss"
    ):
        hints.check("train", ["experiment=kw13_fashion", "likelihood.s2=1"])


@pytest.mark.parametrize("flag", [["--config-dir", "{}"], ["--config-dir={}"], ["-cd", "{}"]])
def test_folders_of_ones_own_are_read(tmp_path, flag):
    (tmp_path := tmp_path / "lr=0.1").mkdir()  # which is no override
    (tmp_path / "likelihood").mkdir()
    words = [word.format(tmp_path) for word in flag]
    (tmp_path / "likelihood" / "mine.yaml").write_text("_target_: my.own.Likelihood\nsharpness: 3\n")
    hints.check("train", [*words, "likelihood=mine", "likelihood.sharpness=4"])
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        hints.check("train", [*words, "likelihood=mien"])
    with pytest.raises(ValueError, match=r"no key 's2' in the chosen likelihood"):
        hints.check("train", [*words, "likelihood=mine", "likelihood.s2=4"])
    with pytest.raises(ValueError, match=r"it belongs to likelihood=mine"):
        hints.check("train", [*words, "likelihood.sharpness=4"])
    # options made of others are Hydra's to judge
    (tmp_path / "likelihood" / "nested.yaml").write_text("defaults: [gaussian]\n")
    hints.check("train", [*words, "likelihood=nested", "likelihood.what=4"])


EXPERIMENTS_OF_ONES_OWN = {
    "adds": (
        "# @package _global_\ntrainer: {limit_val_batches: 2}\nmine: {a: 1}\n",
        ["trainer.limit_val_batches=5", "mine.a=2"],
    ),
    "based": ("# @package _global_\ndefaults: [linear_digits, _self_]\n", ["schedule.final=0.1"]),
}


@pytest.mark.parametrize("name", EXPERIMENTS_OF_ONES_OWN)
def test_what_an_experiment_of_ones_own_adds_may_be_set(tmp_path, name):
    text, words = EXPERIMENTS_OF_ONES_OWN[name]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    hints.check("train", [f"--config-dir={tmp_path}", f"experiment={name}", *words])
    with pytest.raises(ValueError, match="no key"):
        hints.check("train", words)


def test_other_search_paths_are_hydras_affair(tmp_path):
    hints.check("train", [f"hydra.searchpath=[file://{tmp_path}]", "encoder=theirs", "encoder.what=1"])


@pytest.mark.parametrize("text", ["a: b: c", "- a", "1: a", "a: {1: b}"])
def test_a_file_that_is_no_use_is_hydras_affair(tmp_path, text):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "odd.yaml").write_text(text)
    hints.check("train", [f"--config-dir={tmp_path}", "encoder=mlp", "encoder.hidden=[3]"])


def test_what_an_editor_leaves_is_no_option(tmp_path, monkeypatch):
    monkeypatch.setattr(hints, "CONF", shutil.copytree(hints.CONF, tmp_path / "conf"))
    for name in ("train", "encoder/mlp"):
        (file := hints.CONF / f"{name}.yaml").with_name(f".#{file.name}").symlink_to("me@here.1:2")
    assert not hints.sweeps()
    assert ".#mlp" not in hints.usage("train", "")
    with pytest.raises(ValueError, match="no such option"):
        hints.check("train", ["encoder=mpl"])
