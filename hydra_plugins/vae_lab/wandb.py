"""hydra/sweeper=wandb"""

from typing import final

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@final
class WandbSweeper(Sweeper):
    """Writes a sweep for W&B's agents and runs nothing; see `vae_lab.launch.wandb`."""

    def __init__(self, file: str, method: str | None, name: str | None) -> None:
        self.file, self.method, self.name = file, method, name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        from vae_lab.launch import wandb

        wandb.write(self.config, arguments, self.file, self.method, self.name)
