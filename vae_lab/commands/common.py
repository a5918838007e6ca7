"""What the commands share: building a config's objects with errors that name the key."""

import logging
import pickle
import re
import warnings
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from vae_lab.data.module import InMemory
from vae_lab.data.preprocessing import Dequantised
from vae_lab.vae import VAE


def build(cfg: DictConfig, key: str, **arguments: object) -> Any:  # noqa: ANN401
    """The object that `cfg` describes under `key`, given further `arguments` that are objects already.

    Raises:
        ValueError: if its constructor refuses an argument, naming the config key that the argument came from.
    """
    # a copy, as Hydra resolves a part's part where it stands; by pickle, which is much quicker than deepcopy
    part = OmegaConf.select(pickle.loads(pickle.dumps(cfg)), key)
    try:
        return hydra.utils.instantiate(part, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None:
            raise ValueError(f"{key}: {' '.join(str(error).split())}") from error
        if extra := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(cause)):
            # an experiment may set what the option chosen beside it does not take
            where = f"{key}.{extra[2]}"
            raise ValueError(f"{where} is nothing that {extra[1]} takes; leave it out with ~{where}") from error
        inner = re.search(r"^full_key: ([\w.]+)$", str(error), re.MULTILINE)  # a part's part: the encoder's posterior
        raise ValueError(blame(cfg, origin(cfg, inner[1]) if inner else key, str(cause))) from error


def blame(cfg: DictConfig, key: str, message: str) -> str:
    """`message` about the part under `key`; an argument's name at its beginning becomes the key it was set by."""
    word, _, rest = message.partition(" ")
    node = OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=False)
    if not isinstance(node, dict) or word not in node:
        return f"{key}: {' '.join(message.split())}"
    return f"{origin(cfg, f'{key}.{word}')} {rest}"


def origin(cfg: DictConfig, key: str) -> str:
    """The key that the user set: `d` where `encoder.d` is `${d}`, else `key` itself."""
    above, _, name = key.rpartition(".")
    node: Any = OmegaConf.to_container(OmegaConf.select(cfg, above) if above else cfg, resolve=False)
    shared = re.fullmatch(r"\$\{([\w.]+)\}", str(node[name]))
    return shared[1] if shared else key


def bit_levels(vae: VAE, data: InMemory) -> int | None:
    """`levels` for `bits_per_dim`: 1 where p(x | z) is a probability of these training data, their number of levels
    where it is a density and they are dequantised, None where the ELBO says nothing about bits."""
    grid = vae.likelihood.grid
    if grid is not None:
        return 1 if all(bool(grid.check(batch.x).all()) for batch in data.train_feed()) else None
    return data.source.levels if isinstance(data.preprocessing, Dequantised) else None


def quieten() -> None:
    """Lightning's banners and tips say nothing that the user of a command needs."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for module in ("pytorch_lightning", "lightning_fabric"):  # of `srun`, say, wherever that is installed
        warnings.filterwarnings("ignore", module=module)
