"""hydra/sweeper=optuna"""

from collections.abc import Sequence
from typing import final

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@final
class OptunaSweeper(Sweeper):
    """Values that Optuna proposes; see `vae_lab.launch.optuna.Search`."""

    def __init__(
        self,
        study: str | None,
        n_trials: int,
        n_jobs: int | None,
        sampler: str,
        seed: int,
        metrics: Sequence[str],
        directions: Sequence[str],
        pruner: str,
        max_failure_rate: float,
    ) -> None:
        from vae_lab.launch.optuna import Search

        self.search = Search(
            study, n_trials, n_jobs, sampler, seed, list(metrics), list(directions), pruner, max_failure_rate
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        return self.search.run(self.config, self.launcher, arguments)
