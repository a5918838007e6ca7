"""hydra/launcher=pool"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from vae_lab.launch.pool import Device


@final
class PoolLauncher(Launcher):
    """Local processes, one for each slot; see `vae_lab.launch.pool.Pool`."""

    def __init__(
        self,
        devices: "Sequence[Device | Sequence[Device]] | None",
        threads: int | None,
        max_failures: int | None,
        warm: bool,
    ) -> None:
        from vae_lab.launch.pool import Pool

        self.pool = Pool(devices, threads, max_failures, warm)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.pool.launch(self.config, job_overrides)
