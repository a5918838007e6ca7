"""hydra/launcher=slurm"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@final
class SlurmLauncher(Launcher):
    """Jobs of Slurm's; see `vae_lab.launch.slurm.Slurm`."""

    def __init__(
        self,
        partition: str | None,
        gpus_per_job: int,
        cpus_per_job: int,
        mem_gb: float | None,
        timeout_min: int,
        nodes: int,
        tasks_per_node: int,
        array_parallelism: int,
        signal_delay_s: int,
        max_requeues: int,
        max_failures: int | None,
        poll_s: float,
        setup: Sequence[str],
        sbatch: Mapping[str, Any] | None,
    ) -> None:
        from vae_lab.launch.slurm import Slurm

        self.slurm = Slurm(
            partition,
            gpus_per_job,
            cpus_per_job,
            mem_gb,
            timeout_min,
            nodes,
            tasks_per_node,
            array_parallelism,
            signal_delay_s,
            max_requeues,
            max_failures,
            poll_s,
            setup,
            sbatch,
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.slurm.launch(self.config, job_overrides)
