"""A finished run that an agent of a W&B sweep asks for: its results once more, as the W&B run that the agent awaits."""

from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, WandbLogger

from vae_lab import runs
from vae_lab.commands.common import build, quieten
from vae_lab.commands.loggers import close, typed
from vae_lab.runs import record


def log(cfg: DictConfig, folder: Path) -> None:
    """Logs the configuration and the results of the run in `folder` to W&B, if that is `cfg`'s logger."""
    quieten()
    known = record.read(folder) or {}
    logger: Logger = build(cfg, "logger")
    if isinstance(logger, WandbLogger):
        logger.log_hyperparams(typed(runs.read_config(folder)) | {"fingerprint": known["fingerprint"]})
        logger.log_metrics({name: value for name, value in known["results"].items() if value is not None})
        close([logger], 0)
