"""Lightning out of the box: a shuffling DataLoader of images and labels, default bar, logger and checkpoint."""

from pathlib import Path
from time import perf_counter
from typing import final

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.contenders import Contender, Job, Weights
from benchmarks.contenders.bare import Net, arrays, scored
from benchmarks.workloads import Workload, read


class Timer(pl.Callback):
    """The seconds that the steps of one epoch took, without what comes before and after them."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait_for(trainer)
        self.start = perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait_for(trainer)
        self.seconds = perf_counter() - self.start


def wait_for(trainer: pl.Trainer) -> None:
    """Until a trainer's GPU has done what it was told."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()


class DefaultLit(pl.LightningModule):
    """A LightningModule as the tutorials write it: Adam, three values logged at each step and as epoch means."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.net = Net(work)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss, rec, kl = self.net.losses(batch[0])
        self.log("loss", loss, prog_bar=True, on_epoch=True)
        self.log("rec", rec, prog_bar=True, on_epoch=True)
        self.log("kl", kl, prog_bar=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


@final
class Default(Contender):
    """The Trainer's default."""

    about = f"pytorch-lightning {pl.__version__}"

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        x = torch.from_numpy(read(Path(job.file)))
        self.job, self.data = job, TensorDataset(x, torch.arange(len(x)) % 10)

    def train(self) -> tuple[float, Weights]:
        work, timer, lit = self.job.work, Timer(), DefaultLit(self.job.work)
        loader = DataLoader(self.data, batch_size=work.batch, shuffle=True)
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=work.steps,
            accelerator="gpu" if self.job.device == "cuda" else "cpu",
            callbacks=[timer],
            default_root_dir=self.job.folder,
        )
        trainer.fit(lit, loader)
        return timer.seconds, arrays(lit)

    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        return scored(Net(self.job.work), weights, x, eps)


def make(job: Job) -> Contender:
    """The contender of a job."""
    return Default(job)
