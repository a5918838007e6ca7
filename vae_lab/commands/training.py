"""Training one run, once its folder is this process's: build the parts, check that they fit, fit, test."""

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributions.constraints import Constraint

from vae_lab import hints, runs
from vae_lab.callbacks import AtomicIO, History, Preemption
from vae_lab.callbacks.history import latest
from vae_lab.checks import number, whole
from vae_lab.commands import loggers
from vae_lab.commands.common import bit_levels, blame, build, quieten
from vae_lab.data.module import InMemory
from vae_lab.engine.step import Work
from vae_lab.interfaces import Batch
from vae_lab.levels import Levels, count_levels
from vae_lab.lit import LitVAE
from vae_lab.vae import VAE

if TYPE_CHECKING:
    from vae_lab.engine.pack import Member

LAST, BEST_CHECKPOINT = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


def fit(
    parts: tuple[InMemory, LitVAE, pl.Trainer], config: dict[str, Any], folder: Path, checkpoint: str | None
) -> tuple[dict[str, float | None], float | None]:
    """Trains and tests; the final values of all metrics, and the best val/elbo.

    Args:
        config: resolved, for the loggers
        checkpoint: what to go on from, relative to `folder`; None: from the beginning
    Raises:
        FloatingPointError: if training breaks; the last good checkpoint stays.
    """
    data, lit, trainer = parts
    code, last, best = 1, folder / LAST, folder / BEST_CHECKPOINT
    try:
        if trainer.is_global_zero:
            loggers.describe(trainer.loggers, config)
        trainer.fit(
            lit, datamodule=data, ckpt_path=None if checkpoint is None else folder / checkpoint, weights_only=True
        )
        fitted = latest(folder / runs.HISTORY)  # also of what was logged before the run was taken up again
        trainer.test(
            lit,
            datamodule=data,
            ckpt_path=best if best.exists() else "best",  # wherever the folder was when it was saved
            weights_only=True,
            verbose=False,
        )
        metrics = fitted | runs.finite(trainer.callback_metrics)
        if trainer.is_global_zero:
            loggers.conclude(trainer.loggers, config, folder, trainer.global_step)
        code = 0
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    except FloatingPointError as error:
        kept = f"the last good checkpoint is {last}" if last.exists() else "no epoch was finished before it"
        raise FloatingPointError(f"{error}; {kept}; try a lower optimizer.lr, or trainer.gradient_clip_val=1") from None
    finally:
        loggers.close(trainer.loggers, code)
    monitor = trainer.checkpoint_callback.best_model_score if trainer.checkpoint_callback else None  # type: ignore[attr-defined]
    return metrics, None if monitor is None else float(monitor)


class Together(NamedTuple):
    """What a run gets from the process that trains others beside it."""

    engine: "Member"
    preemption: Preemption
    data: dict[str, InMemory]  # those of the other runs, by their configuration


def assemble(cfg: DictConfig, together: Together | None = None) -> tuple[InMemory, LitVAE, pl.Trainer]:
    """Everything that trains, checked: values first, then the data, then whether the model fits them.

    Raises:
        Unpacked: if it cannot be trained with the others in `together`, which is known once all are assembled.
    """
    quieten()
    check_values(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    vae = build_vae(cfg)
    check_prior(cfg, vae)
    optimizer, schedule = build(cfg, "optimizer"), build(cfg, "schedule")
    try:
        optimizer(vae.parameters())
    except ValueError as error:
        raise ValueError(f"optimizer: {error}") from error
    clip, engine = cfg.trainer.gradient_clip_val, build(cfg, "engine") if together is None else together.engine
    every = cfg.trainer.log_every_n_steps
    lit = LitVAE(vae, build(cfg, "objective"), optimizer, schedule, cfg.seed, clip, None, engine, every)
    data = InMemory(build(cfg, "data"), build(cfg, "preprocessing"), build(cfg, "sampling"), cfg.seed)
    trainer = build_trainer(cfg, Preemption() if together is None else together.preemption)
    check_processes(cfg, trainer)
    if together is not None:
        same = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, ["data", "preprocessing"]), resolve=True)
        data.share(together.data.setdefault(same, data))
    try:
        data.setup("fit")
    except ValueError as error:
        raise ValueError(blame(cfg, "data", str(error))) from error
    check_labels(cfg, vae, data)
    check_support(cfg, vae, data)
    fill_table(cfg, vae, data, trainer)
    check_objective(cfg, lit, data)
    lit.levels = bit_levels(vae, data)
    if together is not None:
        together.engine.join(prospect(data, lit, trainer))
    return data, lit, trainer


def prospect(data: InMemory, lit: LitVAE, trainer: pl.Trainer) -> Work:
    """What the engine is going to be given, so far as it is known before the run has begun; of a batch some data."""
    lit.trainer = trainer
    some = Batch(*(None if v is None else v[:8] for v in data.train_feed().example()))  # type: ignore[arg-type]
    return Work(
        lit.vae, lit.objective, lit.make_optimizer(lit.parameters()), lit.clip, some, 0, 0, lit.obstacle(), print
    )


def build_vae(cfg: DictConfig) -> VAE:
    """The model; what one part takes from another is written into `cfg`, so that it can be built again."""
    likelihood = build(cfg, "likelihood")
    if "outputs" in cfg.decoder and cfg.decoder.outputs is None:
        cfg.decoder.outputs = likelihood.outputs
    later = {"n": 1} if "n" in cfg.encoder and cfg.encoder.n is None else {}  # the data are counted by `fill_table`
    return VAE(build(cfg, "encoder", **later), build(cfg, "decoder"), likelihood, build(cfg, "prior"))


def fill_table(cfg: DictConfig, vae: VAE, data: InMemory, trainer: pl.Trainer) -> None:
    """Gives an encoder that has parameters for each training datum (6) as many as there are data, and `cfg` too.

    Raises:
        ValueError: if `cfg` has another number, or for several GPUs, which cannot share sparse gradients.
    """
    if vae.encoder.amortised:
        return
    if trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu":
        given = cfg.trainer.devices
        raise ValueError(f"trainer.devices must be 1 for {cfg.encoder._target_}, except on the CPU, got {given}")
    if cfg.encoder.n is None:
        cfg.encoder.n = data.n
        vae.encoder = build(cfg, "encoder")
    elif cfg.encoder.n != data.n:
        raise ValueError(f"encoder.n must be {data.n}, the number of training data, or null, got {cfg.encoder.n}")


def check_values(cfg: DictConfig) -> None:
    """Raises ValueError for what no constructor of ours would refuse by name."""
    keys = hints.words("train")
    if extra := set(map(str, cfg)) - keys:
        raise ValueError(f"{', '.join(sorted(extra))}: no such key; keys: {', '.join(sorted(keys))}")
    if missing := OmegaConf.missing_keys(cfg):
        raise ValueError(f"{sorted(missing)[0]} must be given")
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number in [0, 2^32), got {cfg.seed!r}")
    for key in ("max_epochs", "max_steps"):
        if cfg.trainer[key] not in (None, -1):
            whole(f"trainer.{key}", cfg.trainer[key])
    whole("trainer.log_every_n_steps", cfg.trainer.log_every_n_steps)
    if cfg.trainer.gradient_clip_val is not None:
        number("trainer.gradient_clip_val", cfg.trainer.gradient_clip_val, above=0.0)
        if cfg.trainer.precision in (16, "16", "16-mixed") and cfg.trainer.accelerator != "cpu":
            raise ValueError(  # its gradients are scaled where they would be clipped
                f"trainer.gradient_clip_val must be null with trainer.precision={cfg.trainer.precision}, "
                f"got {cfg.trainer.gradient_clip_val}; use trainer.precision=bf16-mixed"
            )
    if cfg.trainer.get("accumulate_grad_batches", 1) != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches must be 1, got {cfg.trainer.accumulate_grad_batches}; "
            "use a larger sampling.batch_size"
        )
    if cfg.trainer.get("fast_dev_run"):
        raise ValueError("trainer.fast_dev_run must be false, as it leaves nothing; use trainer.max_steps=10")
    epochs = cfg.trainer.max_epochs
    endless = cfg.trainer.max_steps == -1 and (epochs == -1 or (epochs is None and cfg.trainer.max_time is not None))
    if endless and not cfg.schedule._target_.endswith(".Constant"):
        raise ValueError(
            f"schedule must be constant where trainer.max_epochs and trainer.max_steps set no end, "
            f"got {cfg.schedule._target_}"
        )
    if not cfg.posterior._target_.endswith(".Diagonal") and "posterior" not in cfg.encoder:
        raise ValueError(
            f"posterior must be diagonal where the encoder takes none, as {cfg.encoder._target_}; "
            f"got {cfg.posterior._target_}; choose encoder=mlp or encoder=conv"
        )
    if "lr" in cfg.optimizer:
        number("optimizer.lr", cfg.optimizer.lr, above=0.0)


def build_trainer(cfg: DictConfig, preemption: Preemption) -> pl.Trainer:
    """The Trainer with its logger and callbacks; raises ValueError for devices that are not there."""
    check_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    # without validation there is nothing to choose by: the best is the last
    blind = {"checkpoint": {"monitor": None}} if cfg.data.get("validation") == 0 else {}
    callbacks = [build(cfg, f"callbacks.{name}", **blind.get(name, {})) for name in cfg.callbacks]
    asked = [build(cfg, "logger")] if cfg.logger else []
    blocks = {
        "gradient_clip_val": None,  # LitVAE, which makes the steps of a block, clips
        # of LitVAE's steps it is exact; Lightning, for other callbacks, counts blocks
        "log_every_n_steps": max(1, cfg.trainer.log_every_n_steps // cfg.sampling.block),
    }
    always = {
        "callbacks": [preemption, *callbacks],
        "logger": [*asked, History(Path(cfg.paths.run) / runs.HISTORY)],
        # a launcher's job is requeued by its launcher; Lightning's own requeueing answers a signal that is not sent
        "plugins": [AtomicIO(), *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [])],
    }
    return build(cfg, "trainer", **always, **blocks)


def check_devices(accelerator: str, devices: object) -> None:
    """Raises ValueError if `devices` asks for more than this machine has."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        there, what = torch.cuda.device_count(), "GPUs"
    elif accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        there, what = 1, "GPU"
    else:
        there, what = os.cpu_count() or 1, "CPU cores"
    if isinstance(devices, int) and not isinstance(devices, bool) and devices != -1 and not 1 <= devices <= there:
        raise ValueError(f"trainer.devices must be between 1 and {there} ({what} here), or auto, got {devices}")


def check_processes(cfg: DictConfig, trainer: pl.Trainer) -> None:
    """Raises ValueError where several processes would not train one and the same run, or would lose its log."""
    launcher = trainer.strategy.launcher
    sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    if sweep and isinstance(launcher, _SubprocessScriptLauncher) and trainer.world_size > 1:
        # a further process is started by the same command: it would run the sweep, and its own cells of it
        raise ValueError(
            f"trainer.devices must be 1 in a sweep whose jobs share a process: the run's other processes would repeat "
            f"the whole sweep; got {cfg.trainer.devices}; use hydra/launcher=pool, where each job is a process"
        )
    if getattr(launcher, "_start_method", None) == "fork" and any(isinstance(x, WandbLogger) for x in trainer.loggers):
        raise ValueError(
            f"trainer.strategy must be ddp or ddp_spawn with logger=wandb, whose log a fork loses, "
            f"got {cfg.trainer.strategy!r}"
        )


def check_prior(cfg: DictConfig, vae: VAE) -> None:
    """Raises ValueError if the prior cannot be made from the encoder."""
    try:
        with torch.no_grad():
            vae.p_z()
    except ValueError as error:
        raise ValueError(blame(cfg, "prior", str(error))) from error


def check_labels(cfg: DictConfig, vae: VAE, data: InMemory) -> None:
    """Raises ValueError if the model is conditional and some datum has no label, or one that is not below `classes`."""
    classes = [part.classes for part in (vae.encoder, vae.decoder) if part.classes]
    assert data.splits is not None
    for pixels in data.splits if classes else ():
        if pixels.label is None:
            raise ValueError(f"classes must be 0 for {cfg.data._target_}, which has no labels here, got {cfg.classes}")
        if len(pixels.label) and (pixels.label.min() < 0 or pixels.label.max() >= min(classes)):
            low, high = pixels.label.aminmax()
            raise ValueError(f"classes must be above every label, from 0; these are {low} to {high}, got {cfg.classes}")


def check_support(cfg: DictConfig, vae: VAE, data: InMemory) -> None:
    """Raises ValueError if the likelihood gives some training datum no density."""
    support = vae.likelihood.support
    for batch in data.train_feed():
        if not support.check(batch.x).all():
            raise ValueError(
                f"likelihood: {cfg.likelihood._target_} needs data in {support}, but those of {cfg.data._target_} "
                f"{misfit(support, batch.x, data)}"
            )


def misfit(support: Constraint, x: Tensor, data: InMemory) -> str:
    """What is wrong with the data, of which x do not lie in `support`, and what helps."""
    low, high = x.aminmax()
    if not isinstance(support, Levels) or low < 0 or high > 1:
        return f"reach from {low:g} to {high:g}; use likelihood=gaussian, or scale the data"
    if levels := count_levels(batch.x for batch in data.train_feed()):
        return f"have {levels} levels; use likelihood.levels={levels}"
    raw = "" if data.source.levels is None else f"preprocessing=raw likelihood.levels={data.source.levels}, or "
    return f"lie between such levels; use {raw}likelihood=gaussian"


def check_objective(cfg: DictConfig, lit: LitVAE, data: InMemory) -> None:
    """Raises ValueError if the objective cannot be had of this model: it is tried on two data."""
    batch = next(iter(data.train_feed()))
    two = Batch(*(None if values is None else values[:2] for values in batch))  # type: ignore[arg-type]
    objective, vae = copy.deepcopy(lit.objective), copy.deepcopy(lit.vae)  # training mode may count, or average
    try:
        objective(vae, two, torch.zeros(objective.samples, len(two.x), vae.d))
    except (ValueError, NotImplementedError) as error:
        raise ValueError(blame(cfg, "objective", str(error))) from error
