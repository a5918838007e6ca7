"""hydra/sweeper=grid"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@final
class GridSweeper(Sweeper):
    """Every combination of the values given; see `vae_lab.launch.grid`."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        from vae_lab.launch import grid

        assert self.config is not None and self.launcher is not None  # see setup
        given = [f"{key}={value}" for key, value in self.params.items()]
        return grid.run(self.config, self.launcher, [*given, *arguments])
