"""A run's folder: what a run leaves behind, and how to get the model back from it."""

import importlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import hydra.errors
import torch
import yaml

from vae_lab.data.preprocessing import Preprocessing
from vae_lab.data.sampling import Sampling
from vae_lab.data.sources import Source
from vae_lab.interfaces import Decoder, Encoder, Likelihood, Prior
from vae_lab.objectives import Objective
from vae_lab.vae import VAE

CONFIG, ENVIRONMENT, METRICS, EVALUATION = "config.yaml", "environment.json", "metrics.json", "evaluation.json"
PACKAGES = ["torch", "pytorch-lightning", "hydra-core", "omegaconf", "wandb", "torchmetrics", "numpy", "scikit-learn"]

Config = dict[str, Any]
Part = TypeVar("Part")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes YAML or JSON, by the file's ending; a reader sees the old file or the new one, never a half."""
    text = (
        yaml.safe_dump(dict(content), sort_keys=False)
        if path.suffix == ".yaml"
        else json.dumps(content, indent=2, default=str)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n" * (not text.endswith("\n")))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def environment(overrides: Sequence[str]) -> dict[str, Any]:
    """What a run ran in: the versions of python and packages, the machine, the git revision, the overrides."""
    here = Path(__file__).resolve().parent
    versions = {}
    for package in ("vae-lab", *PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "overrides": list(overrides),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": {"revision": _git(here, "rev-parse", "HEAD"), "changed": bool(_git(here, "status", "--porcelain"))},
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def flat(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Nested keys joined by dots: `{"objective": {"V": 5}}` -> `{"objective.V": 5}`."""
    items: Config = {}
    for key, value in config.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return items


def read_config(folder: str | Path) -> Config:
    """The resolved configuration of the run in `folder`; raises ValueError where there is none."""
    path = Path(folder) / CONFIG
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder} is not the folder of a run: {path} cannot be read ({_reason(error)})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder} is not the folder of a run: {path} holds no mapping")
    return config


def load(folder: str | Path, packages: Sequence[str] = (), checkpoint: str = "best") -> VAE:
    """The trained model of a run, on the CPU and in evaluation mode.

    Nothing in the folder is executed: the configuration is plain YAML, the weights are tensors only, and only classes
    of vae_lab are built, unless `packages` names further packages to trust.

    Args:
        folder: the run's
        packages: importable packages, besides vae_lab, that may hold the model's classes
        checkpoint: `best` (by val/elbo) or `last`
    Raises:
        ValueError: if the folder holds no run, no such checkpoint, or something that may not be loaded.
    """
    config = read_config(folder)
    vae = VAE(
        build(config, "encoder", Encoder, packages),
        build(config, "decoder", Decoder, packages),
        build(config, "likelihood", Likelihood, packages),
        build(config, "prior", Prior, packages),
    )
    path = Path(folder) / "checkpoints" / f"{checkpoint}.ckpt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.ckpt"))) or "none"
        raise ValueError(f"checkpoint {checkpoint!r} is not in {path.parent}; there: {there}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        state = {k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")}
    except Exception as error:  # torch raises a dozen kinds for a torn, hostile or foreign file
        raise ValueError(f"{path} cannot be loaded: {_reason(error)}") from error
    try:
        vae.load_state_dict(state)
    except RuntimeError as error:
        why = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} does not fit the model of {CONFIG}: {why}") from error
    return vae.eval()


def load_data(
    folder: str | Path, packages: Sequence[str] = (), root: str | None = None
) -> tuple[Source, Preprocessing, Sampling, int]:
    """What a run's data were made of: source, preprocessing, sampling, and the run's seed; as safe as `load`.

    Args:
        root: where the data, or others like them, are now; None: where they were
    Raises:
        ValueError: if they cannot be built, or have no root.
    """
    config = read_config(folder)
    if root is not None:
        if "root" not in config["data"]:
            source = config["data"].get("_target_")
            raise ValueError(f"data.root must be null for {source}, which has none, got {root!r}")
        config["data"]["root"] = root
    return (
        build(config, "data", Source, packages),
        build(config, "preprocessing", Preprocessing, packages),
        build(config, "sampling", Sampling, packages),
        int(config["seed"]),
    )


def load_objective(folder: str | Path, packages: Sequence[str] = ()) -> Objective:
    """The objective of a run; as safe as `load`."""
    return build(read_config(folder), "objective", Objective, packages)


def build(config: Config, key: str, kind: type[Part], packages: Sequence[str]) -> Part:
    """The object that a run's config describes under `key`, if it is a `kind` of vae_lab or of a trusted package.

    Raises:
        ValueError: if its `_target_`, or one nested in it, is anything else; none is called before all are checked.
    """
    node = config.get(key)
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ValueError(f"config.yaml has no {key} with a _target_")
    _check(node, key, packages)
    cls = _locate(node["_target_"], key, packages)
    if not issubclass(cls, kind):
        raise ValueError(f"{key}._target_ must be a {kind.__name__}, got {node['_target_']!r}")
    try:
        part = hydra.utils.instantiate(node, _convert_="all")
    except hydra.errors.InstantiationException as error:
        raise ValueError(f"{key} of {CONFIG} cannot be built: {_reason(error.__cause__ or error)}") from error
    if not isinstance(part, kind):  # where `_partial_` stands beside the `_target_`, say
        raise ValueError(f"{key} of {CONFIG} must be a {kind.__name__}, got {type(part).__name__}")
    return part


def _check(node: object, key: str, packages: Sequence[str]) -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "_target_":
                _locate(value, key, packages)
            _check(value, f"{key}.{name}", packages)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _check(value, f"{key}[{i}]", packages)
    elif isinstance(node, str) and "${" in node:
        raise ValueError(f"{key} must be a plain value, got {node!r}")


def _locate(target: object, key: str, packages: Sequence[str]) -> type:
    """The class called `target`, which must be defined in vae_lab or a trusted package."""
    trusted = ("vae_lab", *packages)
    refusal = (
        f"{key}._target_ must be a class of {' or '.join(trusted)}, got {target!r}; trust more with packages=[...]"
    )
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target):
        raise ValueError(refusal)
    module, name = target.rsplit(".", 1)
    if not any(f"{target}.".startswith(f"{package}.") for package in trusted):
        raise ValueError(refusal)
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{key}._target_ {target!r} cannot be imported: {error}") from error
    # `vae_lab.runs.subprocess.Popen` would be found too: what counts is where a class is defined
    if not isinstance(cls, type) or not any(f"{cls.__module__}.".startswith(f"{package}.") for package in trusted):
        raise ValueError(refusal)
    return cls


def finite(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics as plain numbers, for JSON: what is not finite becomes null; Lightning's step is none."""
    numbers = {k: float(v) for k, v in values.items() if k != "step"}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
