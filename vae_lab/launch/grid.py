"""Hydra's grid: every combination of the values given. Unlike Hydra's own sweeper it composes no cell a second time,
and leaves no file beside the runs."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from vae_lab.launch import sweep
from vae_lab.launch.plan import plan, refuse
from vae_lab.runs import identity, sweeps


def run(config: DictConfig, launcher: Launcher, arguments: Sequence[str]) -> list[JobReturn]:
    """Runs the grid that `arguments` span, `d=2,8 seed=0,1`; the result of each of its cells.

    Raises:
        ValueError: if something is wrong with any cell, before the first one starts.
        JobFailed: if a cell's job did not finish; the others did.
    """
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    [cells] = BasicSweeper.split_arguments(overrides, None)
    if "vae_lab" not in type(launcher).__module__:  # ours plan for themselves
        refuse(plan(config, cells))
    axes = [o.key_or_group for o in overrides if o.is_sweep_override()]
    with sweeps.named(identity.sweep_name(arguments), axes):
        returns = list(launcher.launch(cells, initial_job_idx=0))
    if failed := sum(r.status is not JobStatus.COMPLETED for r in returns):
        raise sweep.JobFailed(f"{failed} of {len(returns)} runs did not finish")
    return returns
