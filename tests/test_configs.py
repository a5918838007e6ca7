"""Every YAML file under `conf/` composes, builds, and says just what its class takes."""

import inspect

import hydra
import numpy as np
import pytest
import wandb
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from vae_lab import hints
from vae_lab.cli import COMMANDS, register_resolvers

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
    return hydra.utils.instantiate(OmegaConf.select(cfg, key), _convert_="all")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_builds(composed, group, option):
    choice = f"[{option}]" if group == "callbacks" else option
    cfg = composed(f"{group}={choice}", *(["logger=none"] if group != "logger" else []))
    key = f"{group}.{option}" if group == "callbacks" else group
    if group == "experiment":
        for part in ("data", "preprocessing", "sampling", "encoder", "decoder", "likelihood", "prior", "objective"):
            built(cfg, part)
    elif hints.read(f"{group}/{option}"):
        part, target = built(cfg, key), get_object(hints.read(f"{group}/{option}")["_target_"])
        assert (
            isinstance(getattr(part, "func", part), target) or part.func is target
        )  # an optimiser waits for its model
    else:
        assert OmegaConf.select(cfg, key) in (None, {})


def nodes():
    for group, option in OPTIONS:
        node = hints.read(f"{group}/{option}")
        if "_target_" in node:
            yield pytest.param(node, id=f"{group}/{option}")


@pytest.mark.parametrize("node", list(nodes()))
def test_keys_are_the_constructors(node):
    parameters = dict(inspect.signature(get_object(node["_target_"])).parameters)
    keys = {k for k in node if not k.startswith("_")}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        parameters |= inspect.signature(wandb.init).parameters  # where the W&B logger hands on what it does not know
    assert keys <= set(parameters)
    if node["_target_"].startswith("vae_lab."):
        required = {k for k, p in parameters.items() if p.default is p.empty}
        assert required <= keys


def test_every_class_has_its_file():
    """A class that has no file cannot be chosen."""
    targets = [hints.read(f"{group}/{option}").get("_target_") for group, option in OPTIONS if group != "experiment"]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_differences(composed, name):
    node = hints.read(f"experiment/{name}")
    for entry in node.pop("defaults"):
        [(key, option)] = entry.items()
        group = key.removeprefix("override /")
        assert key.startswith("override /") and option in GROUPS[group]
    # every value differs from what would hold without it
    alone = composed(*(f"{g}={o}" for g, o in changed_groups(name).items()), "logger=none")
    for key, value in leaves(node):
        assert OmegaConf.select(alone, key) != value, f"{key}={value} is the default"


def changed_groups(name):
    entries = hints.read(f"experiment/{name}")["defaults"]
    return {key.removeprefix("override /"): option for entry in entries for key, option in entry.items()}


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            assert isinstance(value, str | int | float | bool | None)
            yield f"{prefix}{key}", value


# What the command line says about them


def test_hints_know_every_group():
    folders = {path.name for path in hints.CONF.iterdir() if path.is_dir()}
    assert set(GROUPS) == folders
    assert all(GROUPS.values())
    usage, keys = hints.usage("train", COMMANDS["train"]), hints.keys("train")
    for group, option in OPTIONS:
        assert group in usage and option in usage
        assert group in keys or group == "experiment"


def test_hints_know_every_key(composed):
    """What may be set, as Hydra has it, is what the hints have."""
    for group, option in OPTIONS:
        if group in ("experiment", "callbacks"):
            continue
        cfg = composed(f"{group}={option}", *(["logger=none"] if group != "logger" else []))
        for key in OmegaConf.select(cfg, group) or {}:
            assert key.startswith("_") or f"{group}.{key}" in hints.keys("train")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    usage = hints.usage(command, COMMANDS[command])
    assert usage.startswith(f"vae-lab {command}: ") and max(map(len, usage.splitlines())) > 20
    for key in (k for k in hints.read(command) if k not in ("defaults", "hydra", "paths")):
        assert f"\n  {key}=" in usage


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
    "logger=null",
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
    word = argument.partition("=")[0]
    assert "\n" not in message and word in message
    assert ("did you mean" in message) == (meant is not None)
    assert meant is None or f"did you mean {meant!r}?" in message
    key, _, option = argument.partition("=")
    allowed = GROUPS[key] if key in GROUPS else ["s2"] if key == "likelihood.s3" else []
    assert all(name in message for name in allowed)
