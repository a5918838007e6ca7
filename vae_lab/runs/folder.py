"""A run's folder gives back the model, and what it was trained on and for."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import hydra.errors
import torch

from vae_lab.data.preprocessing import Preprocessing
from vae_lab.data.sampling import Sampling
from vae_lab.data.sources import Source
from vae_lab.interfaces import Decoder, Encoder, Likelihood, Prior
from vae_lab.objectives import Objective
from vae_lab.runs.files import CONFIG, Config, read_config, reason
from vae_lab.vae import VAE

Part = TypeVar("Part")


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
        raise ValueError(f"{path} cannot be loaded: {reason(error)}") from error
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
        raise ValueError(f"{key} of {CONFIG} cannot be built: {reason(error.__cause__ or error)}") from error
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
    # `vae_lab.runs.files.subprocess.Popen` would be found too: what counts is where a class is defined
    if not isinstance(cls, type) or not any(f"{cls.__module__}.".startswith(f"{package}.") for package in trusted):
        raise ValueError(refusal)
    return cls
