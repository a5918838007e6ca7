"""hydra/launcher=packed"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from vae_lab.launch.pool import Device


@final
class PackedLauncher(Launcher):
    """Small runs that differ in numbers alone, trained as one; see `vae_lab.launch.packed.Packed`."""

    def __init__(
        self,
        devices: "Sequence[Device | Sequence[Device]] | None",
        threads: int | None,
        max_failures: int | None,
        size: int,
        flops: float,
        steps: int,
    ) -> None:
        from vae_lab.launch.packed import Packed

        self.packed = Packed(devices, threads, max_failures, size, flops, steps)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.packed.launch(self.config, job_overrides)
