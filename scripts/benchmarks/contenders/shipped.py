"""What `train.py` runs: its configuration, W&B, checkpoints, pictures, and the progress bar of a terminal."""

import os
import time
import warnings
from pathlib import Path
from typing import final

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

import vae_lab
from benchmarks.contenders import Contender, Job, Weights
from benchmarks.contenders.bare import arrays, fill
from benchmarks.contenders.lightning import Timer
from vae_lab import hints
from vae_lab.callbacks import Progress
from vae_lab.cli import register_resolvers
from vae_lab.commands import loggers, machine, training
from vae_lab.commands.common import build
from vae_lab.interfaces import Batch

BF16 = "bf16"  # an engine's name may be followed by it


@final
class Shipped(Contender):
    """vae_lab, by the engine that the job's kind names. The time of compiling, once a run, is no part of a segment."""

    about = f"vae_lab {vae_lab.__version__}"

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        machine.tune()
        register_resolvers()
        warnings.filterwarnings("ignore")
        self.job, self.seed = job, -1

    def config(self) -> DictConfig:
        """Of the next run: each has another seed, as a repeated one would come to the same loss."""
        self.seed += 1
        work, (engine, *precision) = self.job.work, self.job.kind.split()
        overrides = [
            f"seed={self.seed}",
            f"engine={engine}",
            "data=arrays",
            f"data.root={self.job.file}",
            "data.validation=0",
            "data.test=1",
            "trainer.max_epochs=1",
            f"trainer.max_steps={work.steps}",
            f"trainer.accelerator={'gpu' if self.job.device == 'cuda' else 'cpu'}",
            f"trainer.precision={'bf16-mixed' if BF16 in precision else '32-true'}",
            "logger.offline=true",
            "logger.name=benchmark",
            f"paths.outputs={self.job.folder}",
            f"paths.run={self.job.folder}/{time.time_ns()}",
        ]
        with initialize_config_dir(str(hints.CONF), version_base="1.3"):
            return compose("train", [*work.shape(), *overrides])

    def train(self) -> tuple[float, Weights]:
        data, lit, trainer = training.assemble(self.config())
        timer = Timer()
        terminal = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [timer, Progress(terminal), *(c for c in callbacks if not isinstance(c, Progress))]
        loggers.describe(trainer.loggers, {"workload": self.job.work.name})
        trainer.fit(lit, datamodule=data)
        loggers.close(trainer.loggers, 0)
        return timer.seconds, arrays(lit.vae)

    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        return scored(self.config(), weights, x, eps)


@torch.no_grad()
def scored(cfg: DictConfig, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
    """The loss of the model of `cfg` with these parameters."""
    vae, objective = training.build_vae(cfg), build(cfg, "objective")
    fill(vae, weights)
    batch = Batch(torch.from_numpy(x).unflatten(1, vae.shape), torch.arange(len(x)))
    return float(objective(vae, batch, torch.from_numpy(eps)).loss.mean())


def make(job: Job) -> Contender:
    """The contender of a job."""
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    return Shipped(job)
