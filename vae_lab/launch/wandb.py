"""The sweeper `wandb`: the overrides of a sweep as a sweep.yaml, whose cells the agents of Weights & Biases run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from vae_lab.checks import one_of
from vae_lab.launch import space
from vae_lab.launch.plan import plan, refuse
from vae_lab.launch.space import Axis, Choice, Steps

METHODS = ("grid", "random", "bayes")


def write(config: DictConfig, arguments: Sequence[str], file: str, method: str | None, name: str | None) -> None:
    """Writes the sweep that Hydra has composed `config` for; says how to begin it.

    Raises:
        ValueError: for a sweep that could not run, or that W&B cannot express.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    axes, fixed = space.split(parser.parse_overrides(list(arguments)))
    content = sweep(axes, fixed, method, name)
    refuse(plan(config, [space.overrides(fixed, {axis.key: space.first(axis) for axis in axes})], build=False))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(yaml.safe_dump(content, sort_keys=False))
    print(f"written: {file}\nto begin: wandb sweep {file}\nthen, on each machine, what it prints: wandb agent ...")


def sweep(axes: Sequence[Axis], fixed: Sequence[str], method: str | None, name: str | None) -> dict[str, Any]:
    """The content of sweep.yaml.

    Raises:
        ValueError: for no axis, one that W&B cannot express, or an interval in a grid.
    """
    if not axes:
        raise ValueError("nothing is swept: give a key several values, as in d=2,8")
    between = [axis.key for axis in axes if isinstance(axis, space.Interval)]
    method = one_of("hydra.sweeper.method", method or ("bayes" if between else "grid"), METHODS)
    if between and method == "grid":
        raise ValueError(f"hydra.sweeper.method must be random or bayes for the interval of {between[0]}, got 'grid'")
    for axis in axes:
        if axis.key.startswith("+"):
            # the agents would make a key of W&B's configuration of it
            raise ValueError(f"{axis.key} must be a key that the configuration has, to be swept by W&B")
    return {
        "program": "vae-lab",  # W&B wants one; `command` is what runs
        **({} if name is None else {"name": name}),
        "method": method,
        "metric": {"name": "val/elbo", "goal": "maximize"},
        "parameters": {axis.key: parameter(axis, method) for axis in axes},
        # plain overrides: ${args} would put -- before each, ${args_override_hydra} would let typos pass
        "command": ["${env}", "${interpreter}", "-m", "vae_lab.cli", "train", *fixed, "${args_no_hyphens}"],
    }


def parameter(axis: Axis, method: str) -> dict[str, Any]:
    """An axis in W&B's words; raises ValueError for whole numbers on a logarithmic scale, which it has no word for."""
    if isinstance(axis, Choice):
        return {"values": axis.values}
    if not isinstance(axis, Steps):
        limits = {"min": axis.low, "max": axis.high}
        return {"distribution": "log_uniform_values" if axis.log else "uniform", **limits}
    if axis.log:
        # q_log_uniform_values yields 8.0, which is no whole number to Hydra
        raise ValueError(f"{axis.key} must be some values, as in choice(1,3,10): W&B has no logarithmic whole numbers")
    if method == "bayes" and axis.step == 1 and isinstance(axis.low, int):
        return {"distribution": "int_uniform", "min": axis.low, "max": axis.high}
    n = round((axis.high - axis.low) / axis.step) + 1
    return {"values": [axis.low + i * axis.step for i in range(n)]}
