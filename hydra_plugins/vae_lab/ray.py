"""hydra/launcher=ray"""

from collections.abc import Sequence
from typing import final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@final
class RayLauncher(Launcher):
    """Tasks of Ray's; see `vae_lab.launch.ray.Ray`."""

    def __init__(
        self,
        address: str | None,
        gpus_per_job: float,
        cpus_per_job: float,
        max_retries: int,
        max_failures: int | None,
    ) -> None:
        from vae_lab.launch.ray import Ray

        self.ray = Ray(address, gpus_per_job, cpus_per_job, max_retries, max_failures)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.ray.launch(self.config, job_overrides)
