"""pythae: its VAE with the workload's network and likelihood, by its own trainer."""

import math
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import final

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

from benchmarks.contenders import Contender, Job, Weights
from benchmarks.contenders.bare import Net, arrays, fill, wait
from benchmarks.workloads import S2, Workload, read


class Encoder(BaseEncoder):
    """The workload's encoder, as pythae wants it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> ModelOutput:
        mu, log_sigma = self.net(x).chunk(2, -1)
        return ModelOutput(embedding=mu, log_covariance=2 * log_sigma)


class Decoder(BaseDecoder):
    """The workload's decoder; for pythae's "bce" it gives probabilities."""

    def __init__(self, net: nn.Module, bernoulli: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(net, nn.Sigmoid()) if bernoulli else net

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.net(z))


class Model(VAE):
    """pythae's VAE; its squared error is that of s2 = 1 without the normaliser, so that loss is the workload's own."""

    def loss_function(
        self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.model_config.reconstruction_loss == "bce":
            return super().loss_function(recon_x, x, mu, log_var, z)
        rec = ((recon_x - x) ** 2).sum(-1) / (2 * S2) + 0.5 * x.shape[1] * math.log(2 * math.pi * S2)
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
        return (rec + kl).mean(), rec.mean(), kl.mean()


class Timer(TrainingCallback):
    """The seconds of an epoch."""

    def __init__(self, device: str) -> None:
        self.device = device

    def on_epoch_begin(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
        wait(self.device)
        self.start = perf_counter()

    def on_epoch_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
        wait(self.device)
        self.seconds = perf_counter() - self.start


def model(work: Workload) -> Model:
    """The workload's model; its parameters are in the order decoder, encoder."""
    net, bernoulli = Net(work), work.likelihood == "bernoulli"
    config = VAEConfig((work.side**2,), work.d, reconstruction_loss="bce" if bernoulli else "mse")
    return Model(config, Encoder(net.encoder), Decoder(net.decoder, bernoulli))


@final
class Pythae(Contender):
    """Its trainer, with all that it does by default."""

    about = f"pythae {version('pythae')}, torch {torch.__version__}"

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        x = torch.from_numpy(read(Path(job.file))[: job.work.batch * job.work.steps])
        self.job, self.data, self.seed = job, BaseDataset(x, torch.arange(len(x)) % 10), 0

    def train(self) -> tuple[float, Weights]:
        self.seed += 1
        vae, timer = model(self.job.work), Timer(self.job.device)
        config = BaseTrainerConfig(
            output_dir=self.job.folder,
            num_epochs=1,
            per_device_train_batch_size=self.job.work.batch,
            learning_rate=1e-3,
            seed=self.seed,
            no_cuda=self.job.device == "cpu",
        )
        BaseTrainer(vae, self.data, training_config=config, callbacks=[timer]).train()
        return timer.seconds, [*arrays(vae.encoder), *arrays(vae.decoder)]

    @torch.no_grad()
    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        vae = model(self.job.work)
        parts = list(vae.encoder.parameters())
        fill(vae.encoder, weights[: len(parts)])
        fill(vae.decoder, weights[len(parts) :])
        [noise], values = torch.from_numpy(eps), torch.from_numpy(x)  # V = 1: it has no other
        q = vae.encoder(values)
        z = q.embedding + noise * torch.exp(0.5 * q.log_covariance)
        loss, _, _ = vae.loss_function(vae.decoder(z).reconstruction, values, q.embedding, q.log_covariance, z)
        return float(loss)


def make(job: Job) -> Contender:
    """The contender of a job."""
    return Pythae(job)
