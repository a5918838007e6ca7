"""LitVAE: a model, an objective and an optimiser as one LightningModule."""

import math
import sys
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, final

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.core.optimizer import LightningOptimizer, do_nothing_closure
from pytorch_lightning.plugins.precision import DoublePrecision, Precision
from pytorch_lightning.utilities.enums import GradClipAlgorithmType
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler

from vae_lab.distributions import DiagonalNormal, StandardNormal, centre, kl_per_dimension
from vae_lab.engine.engines import Eager, Engine
from vae_lab.engine.step import Made, Noises, Stepped, Work
from vae_lab.engine.update import Update, update_of
from vae_lab.evaluation.refinement import fitted
from vae_lab.interfaces import ROOM, Batch, Block, Terms
from vae_lab.metrics import Moments, bits_per_dim
from vae_lab.objectives import Objective
from vae_lab.seeds import generator, seed_of
from vae_lab.vae import VAE

ACTIVE = 0.01
"""A latent unit j is active if A_j = Var_x(E_q[z_j | x]) is above this (Burda et al. 2016, section 5.2)."""


@final
class LitVAE(pl.LightningModule):
    """Trains and tests a VAE.

    Logs, in nats per datapoint: `{train,val,test}/{elbo,kl,rec,loss}`, exact means over the data of an epoch,
    `elbo_total`, which is n times the mean (17)-(18), and `bits_per_dim` where x has a probability; every
    `log_every` optimiser steps `train/{elbo,kl,rec,loss}_step` of that step, and `train/grad_norm`; each
    epoch `train/images_per_second`; for validation and test `kl_dim/j`, the KL of each latent dimension,
    `active_units`, and `elbo_se`, the standard error of the ELBO.

    An encoder that is not amortised (6) has an optimiser of its own, and `clip`, `train/grad_norm` and the schedule are
    the others' affair; data of validation and test are refined (see `fitted`), batch by batch, before they are scored.

    The batches it is fed are the same on every process; each process takes its share of the data and of the noise,
    so that results do not depend on the number of processes.

    A checkpoint holds where the noise and the epoch's statistics are, so that on a CPU a run that continues from one
    comes to the same weights, bit by bit, and logs the same values as one that never stopped.

    Where steps are compiled, `train/compile_seconds` is logged too; `images_per_second` leaves them out.

    Args:
        vae: the model
        objective: what is maximised
        optimizer: parameters -> optimiser
        schedule: (optimiser, number of steps) -> a scheduler stepped once a step, or None
        seed: of the noise
        clip: the greatest norm that the gradient may have, or None
        levels: for `bits_per_dim` (see there); None: x has no probability, and no bits are logged
        engine: who makes the optimiser steps; None: they are made eagerly
        log_every: how many steps lie between two that are logged
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
        clip: float | None = None,
        levels: int | None = None,
        engine: Engine | None = None,
        log_every: int = 50,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a training step is a block of optimiser steps
        self.vae, self.objective = vae, objective
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.seed, self.clip, self.levels, self.engine = seed, clip, levels, engine or Eager()
        self.log_every = log_every
        self.train_terms, self.eval_terms = Moments(len(Terms._fields)), Moments(len(Terms._fields))
        self.posterior_means, self.kl_dims = Moments(vae.d), Moments(vae.d)
        self.images, self.seconds = 0, 0.0  # of this epoch so far
        self.updates: list[Update] = []  # what makes an eager step of each optimiser
        self.resumed: dict[str, Any] | None = None  # where the checkpoint was taken that a fit continues from

    def setup(self, stage: str) -> None:
        rank, self.world = self.global_rank, self.trainer.world_size
        self.alone, self.mine = self.world == 1, slice(rank, None, self.world)
        self.resumed = None

    # --- training

    def configure_optimizers(self) -> OptimizerLRScheduler:
        encoder = self.vae.encoder
        aside = () if encoder.amortised else ("vae.encoder.",)
        optimizer = self.make_optimizer([p for name, p in self.named_parameters() if not name.startswith(aside)])
        schedule = self.make_schedule(optimizer, self.steps())
        first = {"optimizer": optimizer} | ({} if schedule is None else {"lr_scheduler": schedule})
        if encoder.amortised:
            return first  # type: ignore[return-value]
        # (6)  Adam would go on moving every phi_i by its momentum, drawn or not
        return [first, {"optimizer": SparseAdam(encoder.parameters(), encoder.lr)}]  # type: ignore[return-value]

    def steps(self) -> int:
        """How many optimiser steps the whole run has."""
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        limits = [steps] if steps >= 0 else []
        if epochs is not None and epochs >= 0:
            limits.append(epochs * self.trainer.datamodule.steps_per_epoch)  # type: ignore[attr-defined]
        return min(limits, default=sys.maxsize)

    def on_fit_start(self) -> None:
        self.noise = generator(self.device, self.seed, "noise")
        # Lightning's way through a backward pass and an optimiser step costs a small model a quarter of its time. It
        # is taken only where something depends on it
        self.native = type(self.trainer.precision_plugin) is Precision
        self.needs_lightning = self.why_lightning()
        self.images, self.seconds = 0, 0.0
        self.train_terms.reset()

    def why_lightning(self) -> str | None:
        """What depends on Lightning's own way through a step: processes, mixed precision, a callback that looks in."""
        if self.trainer.world_size > 1:
            return "several processes train together"
        if type(self.trainer.precision_plugin) not in (Precision, DoublePrecision):
            return f"trainer.precision is {self.trainer.precision}"
        hooks = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for c in callbacks:
            if any(getattr(type(c), hook) is not getattr(pl.Callback, hook) for hook in hooks):
                return f"the callback {type(c).__name__} looks inside a step"
        return None

    def on_train_start(self) -> None:
        if self.resumed is not None:
            self.resume(self.resumed)
        self.trained = [p for o in self.trainer.optimizers for group in o.param_groups for p in group["params"]]
        self.make_steps = self.engine.start(self.work(), self.eager_step)
        if self.engine.seconds:
            self.log_numbers({"train/compile_seconds": self.engine.seconds}, self.global_step)
        self.started = perf_counter() - self.seconds

    def work(self) -> Work:
        """What the engine is to do."""
        batch = self.precise(self.trainer.train_dataloader.feed.example())  # type: ignore[union-attr]
        optimizer, steps, taken = self.trainer.optimizers[0], self.steps(), self.global_step

        def tell(line: str) -> None:
            if self.trainer.is_global_zero:
                print(line, flush=True)

        return Work(self.vae, self.objective, optimizer, self.clip, batch, steps, taken, self.obstacle(), tell)

    def obstacle(self) -> str | None:
        """Why the steps have to be made eagerly."""
        encoder = self.vae.encoder
        if not encoder.amortised:
            return f"the gradients of {type(encoder).__name__} are sparse, with an optimiser of their own"
        if torch.is_anomaly_enabled() or self.trainer._detect_anomaly:
            return "trainer.detect_anomaly looks inside a step"
        if self.clip is not None and self.trainer.gradient_clip_algorithm not in (None, "norm"):
            return "trainer.gradient_clip_algorithm is not norm"
        return self.why_lightning()

    def precise(self, rows: Batch) -> Batch:
        """Data in the trainer's precision."""
        return rows if self.native else self.trainer.precision_plugin.convert_input(rows)

    def on_train_epoch_start(self) -> None:
        self.images, self.started = 0, perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not hasattr(self, "noise"):
            return
        device = self.noise.device
        checkpoint["position"] = {
            "device": device.type,
            "noise": self.noise.get_state(),
            # nothing of ours draws from torch's own stream; a component of the user's may
            "torch": torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state(),
            "terms": self.train_terms.sums(),
            "images": self.images,
            "seconds": self.seconds,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed = checkpoint.get("position") if self.trainer.state.fn == "fit" else None

    def resume(self, position: dict[str, Any]) -> None:
        """Goes on where the checkpoint was taken; on another kind of device, with noise of its own from there."""
        self.resumed = None
        self.images, self.seconds = position["images"], position["seconds"]
        if self.global_rank == 0:  # the sums are those of all processes
            self.train_terms.resume(position["terms"])
        if position["device"] != self.noise.device.type:
            self.noise.manual_seed(seed_of(self.seed, "noise", position["noise"].tolist()))
            return
        self.noise.set_state(position["noise"])
        if self.noise.device.type == "cuda":
            torch.cuda.set_rng_state(position["torch"], self.noise.device)
        else:
            torch.set_rng_state(position["torch"])

    def training_step(self, block: Block, block_idx: int) -> None:
        if 0 <= self.trainer.max_steps < self.global_step + len(block):
            block, _ = block.at(self.trainer.max_steps - self.global_step)
        if not self.native:
            block = Block(self.precise(block.gathered()), block.size)
        one = block.size * self.objective.samples * self.vae.d * block.rows.x.element_size()  # bytes of a batch's noise
        for part in block.parts(max(1, ROOM // one)):
            self.train_on(part)

    def train_on(self, block: Block) -> None:
        """Makes the optimiser steps of a block."""
        before = self.global_step
        schedule, first = self.lr_schedulers(), self.all_optimizers()[0]
        assert not isinstance(schedule, list)
        self.updates = []

        def advance() -> bool:
            if self.needs_lightning is None:
                first._on_before_step()  # Lightning counts its steps here, and there
                first._on_after_step()
            if schedule is None:
                return False
            schedule.step()
            return True

        logged = [k for k in range(len(block)) if (before + k + 1) % self.log_every == 0]
        made = self.make_steps(block, self.noises(block), advance, logged)
        self.images += block.n
        self.account(made, before)
        self.seconds = perf_counter() - self.started
        for k in logged:
            self.log_step(made.of(k), block.sizes()[k], before + k + 1)

    def all_optimizers(self) -> list[LightningOptimizer]:
        """The optimisers. The steps of the first are counted: it has all parameters but those of single data (6)."""
        found = self.optimizers()
        first, *others = found if isinstance(found, list) else [found]
        for other in others:
            other._on_before_step = other._on_after_step = do_nothing_closure  # global_step counts batches
        return [first, *others]

    def eager_step(self, batch: Batch, eps: Float[Tensor, "V B d"], norm: bool) -> Stepped:
        """An optimiser step, one operation after another."""
        t, total = self.terms(self.vae, batch, eps), None
        for p in self.trained:
            p.grad = None  # the optimiser's own way takes a fiftieth of a small model's step
        # the mean over the whole batch, once the gradients have been averaged over the processes
        share = self.world / len(batch.x)
        if self.needs_lightning is None:
            t.loss.backward(torch.full_like(t.loss, share))  # that mean's gradient: the mean itself is not asked for
        else:
            self.manual_backward(t.loss.sum() * share)
        if norm:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            total = torch.nn.utils.get_total_norm([g for g in gradients if not g.is_sparse])
            if (scaler := getattr(self.trainer.precision_plugin, "scaler", None)) is not None:
                total = total / scaler.get_scale()
        if self.clip is not None:
            how = GradClipAlgorithmType(self.trainer.gradient_clip_algorithm or "norm")
            # mixed precision's own refuses fused optimisers, also for bfloat16, where no gradient is scaled
            Precision.clip_gradients(self.trainer.precision_plugin, self.trainer.optimizers[0], self.clip, how)
        if not self.updates:  # anew in each block: between two, a callback may have changed anything
            plain = self.needs_lightning is None
            self.updates = [update_of(o.optimizer) if plain else o.step for o in self.all_optimizers()]
        for update in self.updates:
            update()
        with torch.no_grad():
            return Stepped(torch.stack(t), total)

    def log_step(self, stepped: Stepped, B: int, step: int) -> None:
        """Logs what is known of a step on B data. Loggers have it at once, before a callback can take a checkpoint
        after which nothing would log it; Lightning would tell them later."""
        total, norm = stepped.terms.sum(1), stepped.norm
        assert norm is not None
        if not self.alone:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        values = {f"train/{name}_step": v for name, v in named(total / B).items()} | {"train/grad_norm": norm}
        self.trainer.callback_metrics.update(values)
        if self.loggers:
            numbers = torch.stack(list(values.values())).tolist()
            self.log_numbers(dict(zip(values, numbers, strict=True)), step)

    def log_numbers(self, numbers: dict[str, float], step: int) -> None:
        """Tells the loggers, at once."""
        for logger in self.loggers:
            logger.log_metrics(numbers, step=step)
            logger.save()

    def account(self, made: Made, before: int) -> None:
        """Takes the terms of the steps after step `before` into the epoch's statistics, if they are finite."""
        self.train_terms.update(made.terms)
        if not self.train_terms.total.sum().isfinite():
            each = enumerate(made.terms.split(made.size, dim=1), before + 1)
            step, first = next((step, terms) for step, terms in each if not terms.isfinite().all())
            self.fail(first, f"step {step}")

    def on_train_epoch_end(self) -> None:
        terms = named(self.train_terms.compute().mean)
        # (18)  n/m sum_i L_i
        terms["elbo_total"] = terms["elbo"] * self.trainer.datamodule.n  # type: ignore[attr-defined]
        speed = {"images_per_second": terms["elbo"].new_tensor(self.images / self.seconds)}
        self.log_all({f"train/{name}": v for name, v in (terms | self.bits(terms["elbo"]) | speed).items()})
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
        vae, batch = fitted(self.vae, batch, self.eval_noise)
        self.eval_terms.update(torch.stack(self.terms(vae, batch, self.draw(len(batch.x), batch.x, self.eval_noise))))
        q, p = vae.encoder(self.share(batch)), vae.p_z()
        self.posterior_means.update(centre(q).T)
        if isinstance(q, DiagonalNormal) and isinstance(p, StandardNormal):
            self.kl_dims.update(kl_per_dimension(q, p).T)

    def report(self, split: str) -> None:
        """Logs the statistics of an evaluation and empties them."""
        terms, A = self.eval_terms.compute(), self.posterior_means.compute().variance
        if not terms.mean.isfinite().all():
            self.fail(terms.mean[:, None], f"the {split} evaluation after step {self.global_step}")
        values = named(terms.mean) | {"elbo_se": terms.error[Terms._fields.index("elbo")]}
        values |= {"elbo_total": terms.n * values["elbo"]} | self.bits(values["elbo"])  # (17)
        values |= {"active_units": (A > ACTIVE).sum().to(A.dtype)}
        if self.kl_dims.n:  # the closed form was there
            kl = self.kl_dims.compute().mean
            values |= {f"kl_dim/{j:0{len(str(self.vae.d - 1))}d}": kl_j for j, kl_j in enumerate(kl)}
        self.log_all({f"{split}/{name}": v for name, v in values.items()})
        for metric in (self.eval_terms, self.posterior_means, self.kl_dims):
            metric.reset()

    # --- both

    def bits(self, elbo: Float[Tensor, ""]) -> dict[str, Tensor]:
        """The bits for each value of a datum that the mean ELBO amounts to, where x has a probability."""
        D = math.prod(self.vae.shape)
        return {} if self.levels is None else {"bits_per_dim": bits_per_dim(elbo, D, self.levels)}

    def noises(self, block: Block) -> Noises:
        """The noise of each batch of a block in training, the same whatever the block's size."""
        x, V, d = block.rows.x, self.objective.samples, self.vae.d
        # torch fills by groups of 16 on a CPU: then all at once is the same as one after another
        if x.device.type != "cpu" or V * block.size * d % 16 or block.n % block.size:
            return [self.draw(B, x, self.noise) for B in block.sizes()]
        return torch.randn((len(block), V, block.size, d), generator=self.noise, dtype=x.dtype)

    def draw(self, B: int, x: Tensor, noise: torch.Generator) -> Float[Tensor, "V B d"]:
        """The noise of B data like x."""
        shape = self.objective.samples, B, self.vae.d
        return torch.randn(shape, generator=noise, device=x.device, dtype=x.dtype)

    def terms(self, vae: VAE, batch: Batch, eps: Float[Tensor, "V B d"]) -> Terms:
        """The objective on this process's share of the batch, with its share of the batch's noise."""
        return self.objective(vae, self.share(batch), eps if self.alone else eps[:, self.mine])

    def share(self, batch: Batch) -> Batch:
        """Every world_size-th datum of the batch, from this process's rank on."""
        if self.alone:
            return batch
        label = None if batch.label is None else batch.label[self.mine]
        return Batch(batch.x[self.mine], batch.index[self.mine], label)

    def log_all(self, values: dict[str, Tensor]) -> None:
        """Logs values that are the same on every process, at the present optimiser step (Lightning counts blocks)."""
        values = {name: v.float() for name, v in values.items()}
        if self.trainer.state.fn != "fit":  # whose results Lightning returns, in a table of its own
            step = {"step": torch.tensor(float(self.global_step))}
            self.log_dict(values | step, sync_dist=self.trainer.world_size > 1)
            return
        if self.trainer.sanity_checking:  # before training: of some of the data, and nothing that is told
            return
        # Lightning's own way takes as long for two values as a small model's step
        self.trainer.callback_metrics.update(values)
        self.trainer.logged_metrics.update(values)
        if self.loggers:
            numbers = torch.stack(list(values.values())).tolist()
            row = dict(zip(values, numbers, strict=True)) | {"epoch": self.current_epoch}
            self.log_numbers(row, self.global_step)

    def fail(self, terms: Float[Tensor, "k B"], when: str) -> None:
        """Raises FloatingPointError, naming the terms [k, B] that are not finite."""
        finite = Terms(*(bool(v.isfinite().all()) for v in terms))  # type: ignore[arg-type]
        # the ELBO and the loss are made of the other two: they are named only where those are whole
        broken = [name for name in ("rec", "kl") if not getattr(finite, name)] or ["loss"]
        raise FloatingPointError(f"{' and '.join(broken)} not finite at {when} (epoch {self.current_epoch})")


def named(values: Float[Tensor, " k"]) -> dict[str, Tensor]:
    """The values of Terms by name."""
    return dict(zip(Terms._fields, values, strict=True))
