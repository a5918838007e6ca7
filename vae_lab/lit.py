"""LitVAE: a model, an objective and an optimiser as one LightningModule."""

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import final

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae_lab.distributions import kl_per_dimension
from vae_lab.interfaces import Batch, Terms
from vae_lab.metrics import Moments
from vae_lab.objectives import Objective
from vae_lab.seeds import generator
from vae_lab.vae import VAE

ACTIVE = 0.01
"""A latent unit j is active if A_j = Var_x(E_q[z_j | x]) is above this (Burda et al. 2016, section 5.2)."""


@final
class LitVAE(pl.LightningModule):
    """Trains and tests a VAE.

    Logs, in nats per datapoint: `{train,val,test}/{elbo,kl,rec}`, exact means over the data of an epoch; every
    `trainer.log_every_n_steps` steps `train/{elbo,kl,rec}_step` of that step, and `train/grad_norm`; each epoch
    `train/images_per_second`; for validation and test `kl_dim/j`, the KL of each latent dimension, `active_units`,
    and `elbo_se`, the standard error of the ELBO.

    The batches it is fed are the same on every process; each process takes its share of the data and of the noise,
    so that results do not depend on the number of processes.

    Args:
        vae: the model
        objective: what is maximised
        optimizer: parameters -> optimiser
        schedule: (optimiser, number of steps) -> a scheduler stepped once a step, or None
        seed: of the noise
    Raises:
        FloatingPointError: if a term is not finite, naming the term, the step and the epoch.
    """

    def __init__(
        self,
        vae: VAE,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer, int], LRScheduler | None],
        seed: int,
    ) -> None:
        super().__init__()
        self.vae, self.objective = vae, objective
        self.make_optimizer, self.make_schedule, self.seed = optimizer, schedule, seed
        self.train_terms, self.eval_terms = Moments(len(Terms._fields)), Moments(len(Terms._fields))
        self.posterior_means, self.kl_dims = Moments(vae.d), Moments(vae.d)
        self.window: list[Tensor] = []  # the terms of the steps since the last log, still on the device

    # --- training

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.parameters())
        schedule = self.make_schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self.noise = generator(self.device, self.seed, "noise")

    def on_train_epoch_start(self) -> None:
        self.window.clear()
        self.images, self.started = 0, perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.terms(batch, self.noise)
        self.window.append(torch.stack([t.detach() for t in terms]))
        self.images += len(batch.x)
        # the mean over the whole batch, once the gradients have been averaged over the processes
        return terms.loss.sum() * (self.trainer.world_size / len(batch.x))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(grads))

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        logs = self.global_step % self.trainer.log_every_n_steps == 0
        if logs or self.trainer.is_last_batch:
            values = self.read_window()
            if logs:
                self.log_dict({f"train/{name}_step": v for name, v in named(values[-1].mean(1)).items()})
        if self.trainer.is_last_batch:
            self.rate = self.images / (perf_counter() - self.started)

    def read_window(self) -> list[Tensor]:
        """Takes the window's terms into the epoch's statistics, having checked that they are finite; empties it."""
        window, values = list(self.window), torch.cat(self.window, dim=1)
        self.window.clear()
        if not values.isfinite().all():
            first = next(i for i, v in enumerate(window) if not v.isfinite().all())
            self.fail(window[first], f"step {self.global_step - len(window) + first + 1}")
        self.train_terms.update(values)
        return window

    def on_train_epoch_end(self) -> None:
        self.log_all({f"train/{name}": v for name, v in named(self.train_terms.compute().mean).items()})
        self.log("train/images_per_second", self.rate, rank_zero_only=True)
        self.train_terms.reset()

    # --- validation and test

    def on_validation_epoch_start(self) -> None:
        self.eval_noise = generator(self.device, self.seed, "val")  # the same noise every epoch: curves compare

    def on_test_epoch_start(self) -> None:
        self.eval_noise = generator(self.device, self.seed, "test")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.take(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.take(batch)

    def on_validation_epoch_end(self) -> None:
        self.report("val")

    def on_test_epoch_end(self) -> None:
        self.report("test")

    def take(self, batch: Batch) -> None:
        """Takes a batch into the statistics of an evaluation."""
        self.eval_terms.update(torch.stack(self.terms(batch, self.eval_noise)))
        q, p = self.vae.encoder(self.share(batch)), self.vae.prior()
        self.posterior_means.update(q.mean.T)
        self.kl_dims.update(kl_per_dimension(q, p).T)

    def report(self, split: str) -> None:
        """Logs the statistics of an evaluation and empties them."""
        terms, A, kl = self.eval_terms.compute(), self.posterior_means.compute().variance, self.kl_dims.compute().mean
        if not terms.mean.isfinite().all():
            self.fail(terms.mean[:, None], f"the {split} evaluation after step {self.global_step}")
        values = named(terms.mean) | {"elbo_se": terms.error[Terms._fields.index("elbo")]}
        values |= {"active_units": (A > ACTIVE).sum().to(A.dtype)}
        values |= {f"kl_dim/{j:0{len(str(self.vae.d - 1))}d}": kl_j for j, kl_j in enumerate(kl)}
        self.log_all({f"{split}/{name}": v for name, v in values.items()})
        for metric in (self.eval_terms, self.posterior_means, self.kl_dims):
            metric.reset()

    # --- both

    def terms(self, batch: Batch, noise: torch.Generator) -> Terms:
        """The objective on this process's share of the batch, with its share of the batch's noise."""
        x = batch.x
        eps = torch.randn(
            self.objective.samples, len(x), self.vae.d, generator=noise, device=x.device, dtype=x.dtype
        )  # [V, B, d]
        rank, world = self.global_rank, self.trainer.world_size
        return self.objective(self.vae, self.share(batch), eps[:, rank::world])

    def share(self, batch: Batch) -> Batch:
        """Every world_size-th datum of the batch, from this process's rank on."""
        rank, world = self.global_rank, self.trainer.world_size
        return Batch(*(None if v is None else v[rank::world] for v in batch)) if world > 1 else batch

    def log_all(self, values: dict[str, Tensor]) -> None:
        """Logs values that are the same on every process."""
        self.log_dict({name: v.float() for name, v in values.items()}, sync_dist=self.trainer.world_size > 1)

    def fail(self, terms: Float[Tensor, "k B"], when: str) -> None:
        """Raises FloatingPointError, naming the terms [k, B] that are not finite."""
        finite = Terms(*(bool(v.isfinite().all()) for v in terms))  # type: ignore[arg-type]
        # the ELBO and the loss are made of the other two: they are named only where those are whole
        broken = [name for name in ("rec", "kl") if not getattr(finite, name)] or ["loss"]
        raise FloatingPointError(f"{' and '.join(broken)} not finite at {when} (epoch {self.current_epoch})")


def named(values: Float[Tensor, " k"]) -> dict[str, Tensor]:
    """The values of Terms that are logged, by name."""
    return {name: v for name, v in zip(Terms._fields, values, strict=True) if name != "loss"}
