"""A job of a sweep: the plain command of one run, in a process of its own. Launchers differ in where they place it."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from vae_lab.runs import record
from vae_lab.runs.files import LOG as LOG
from vae_lab.runs.files import tail as tail

RANK = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")
"""The place of a process among others: of the one that launches, never of its jobs."""

PLACING = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")
"""What says where and how a sweep runs, and is none of a job's business."""

LOST = 255  # what multiprocessing says of a process whose server has been killed, however the process ends

INTERRUPTED = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


class Outcome(NamedTuple):
    """How a job ended."""

    state: str  # finished, partial (it was interrupted, and continues when asked again) or failed
    value: float | None = None  # the best val/elbo, in nats per datapoint
    error: str | None = None


def command(overrides: Sequence[str]) -> list[str]:
    """The command of the run that `overrides` describe."""
    return [sys.executable, "-m", "vae_lab.cli", "train", *overrides]


def inherited(config: DictConfig) -> list[str]:
    """What a job has to be told besides its cell's overrides: where to find groups, and what the user told Hydra.

    Raises:
        ValueError: for folders of Hydra's own, where a run could not be found again.
    """
    told = [o for o in config.hydra.overrides.hydra if not o.lstrip("+~").startswith(PLACING)]
    for override in told:
        if override.lstrip("+~").startswith(("hydra.sweep.", "hydra.run.")):
            raise ValueError(f"{override}: a run's folder is named by what it is; set paths.outputs instead")
    sources = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
    return [*(f"--config-dir={folder}" for folder in sources), *told]


def environment(devices: Sequence[int | str] | None = None, threads: int | None = None) -> dict[str, str]:
    """The environment of a job that may use these GPUs (None: whatever there is) and so many threads (None: all)."""
    # HYDRA_FULL_ERROR: the command sets it for itself; a job answers a mistake in one line.
    # WANDB_SERVICE: W&B's own process, of a run that the launching one has; the job's run would end with it
    aside = {*RANK, "HYDRA_FULL_ERROR", "WANDB_SERVICE"}
    env = {name: value for name, value in os.environ.items() if name not in aside}
    env |= {"PYTHONUNBUFFERED": "1"}  # what a killed job has said is in its log
    if devices is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order of nvidia-smi
    if threads is not None:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return env


def outcome(folder: str | Path, status: int) -> Outcome:
    """How the job of the run in `folder` ended, given its exit status: -n or 128 + n if signal n ended it."""
    kept: Mapping[str, object] = record.read(Path(folder)) or {}
    if status == LOST and kept.get("state") == "finished":
        status = 0
    if status == 0 and kept.get("state") in ("finished", "partial"):  # partial: a study has ended it
        value = kept.get("value")
        return Outcome("finished", None if value is None else float(value))  # type: ignore[arg-type]
    number = -status if status < 0 else status - 128
    if number in INTERRUPTED:
        return Outcome("partial", error=f"interrupted by {signal.Signals(number).name}")
    if number in set(signal.Signals):
        hint = "; out of memory?" if number == signal.SIGKILL else ""
        return Outcome("failed", error=f"killed by {signal.Signals(number).name}{hint}")
    if status == 0:
        return Outcome("failed", error="ended without a result")
    said = kept.get("error") if kept.get("state") == "failed" else None
    return Outcome("failed", error=str(said or f"exit status {status}"))
