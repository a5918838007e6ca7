"""Look before you leap: what is wrong with a run, and what it will take, before it is trained."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vae_lab.commands.common import build
from vae_lab.commands.tables import results_table
from vae_lab.commands.training import assemble, build_vae, check_prior, check_values
from vae_lab.interfaces import ROOM, Batch
from vae_lab.lit import LitVAE
from vae_lab.runs import record

ALONE = ("data", "preprocessing", "sampling", "optimizer", "schedule", "objective")
MODEL = ("encoder", "posterior", "decoder", "likelihood", "prior")
TRIED = 5  # steps that are timed, after one that is not


class Cost(NamedTuple):
    """What a run takes."""

    parameters: int
    memory: int  # bytes: data, parameters, their gradients and moments, and what a batch keeps for its backward pass
    step: float  # seconds of an optimiser step
    steps: int

    @property
    def seconds(self) -> float:
        """Of all steps; evaluation, pictures and checkpoints come on top."""
        return self.step * self.steps

    def shown(self) -> dict[str, str]:
        """In words."""
        time = str(timedelta(seconds=round(self.seconds)))
        return {"parameters": f"{self.parameters:,}", "memory": f"{self.memory / 2**20:,.0f} MiB", "time": time}


def run(cfg: DictConfig) -> None:
    """Prints what the run of `cfg` takes; trains nothing and writes nothing. Raises ValueError for what is wrong."""
    folder = Path(cfg.paths.run)
    try:
        results_table("this run would take", cost(cfg).shown(), Console())
    finally:
        record.tidy(folder)  # Hydra made them
        record.tidy(folder.parent)


def values(cfg: DictConfig, seen: set[str]) -> None:
    """Builds the parts of a run whose like has not been `seen`, without data; takes logger and folder out of `cfg`.

    Raises:
        ValueError: if one of them refuses a value, or does not fit the others.
    """
    cfg.logger, cfg.paths.run = None, "."  # they ask Hydra for the run's name, W&B for an account, and who it is
    check_values(cfg)
    for key in ALONE:
        if (text := _text(cfg, key)) not in seen:
            build(cfg, key)
            seen.add(text)
    if (text := _text(cfg, *MODEL)) not in seen:
        check_prior(cfg, build_vae(cfg))
        seen.add(text)


def architecture(cfg: DictConfig) -> str:
    """Equal for runs whose steps take the same: of the same shapes, classes, objective and batches."""
    vae = build_vae(cfg)
    shapes = [(name, tuple(p.shape)) for name, p in vae.named_parameters()]
    classes = [cfg[key].get("_target_") for key in (*MODEL, "optimizer")]
    kept = _text(cfg, "data", "preprocessing", "sampling", "objective")
    return f"{shapes} {classes} {kept} {cfg.trainer.accelerator} {cfg.trainer.precision}"


def need(cfg: DictConfig) -> tuple[int, int]:
    """What the run of `cfg` takes beside others, tried on a batch that is made up, as no data are loaded: operations in
    floating point of an optimiser step's matrix products and convolutions, and bytes of memory, roughly.

    Raises:
        Exception: whatever keeps the step from being made.
    """
    cfg = OmegaConf.create(cfg)  # `build_vae` writes into it
    vae, objective, B = build_vae(cfg), build(cfg, "objective"), cfg.sampling.batch_size
    batch = Batch(torch.zeros(B, *vae.shape), torch.arange(B), torch.zeros(B, dtype=torch.long))
    eps = torch.zeros(objective.samples, B, vae.d)
    with FlopCounterMode(display=False) as counter:
        kept = _measure(lambda: objective(vae, batch, eps).loss.mean().backward(), eps.device)
    rows, noise = (v.nbytes * max(1, min(cfg.sampling.block, ROOM // max(1, v.nbytes))) for v in (batch.x, eps))
    blocks = 2 if build(cfg, "preprocessing").resample else 0  # that is in work, and the next: these lie nowhere else
    # values, gradients and two moments, in the stack; all but gradients once more as the run's own, and as what it is
    # about to save. What a step keeps, and its gradients. A block's noise, and where it is in the stack
    memory = 10 * sum(p.nbytes for p in vae.parameters()) + 2 * kept + blocks * rows + 2 * noise
    return counter.get_total_flops(), memory


def cost(cfg: DictConfig) -> Cost:
    """What the run of `cfg` takes: everything is built, and a few optimiser steps are taken and forgotten.

    Raises:
        ValueError: for whatever is wrong with the configuration or the data.
    """
    cfg.logger, cfg.callbacks = None, {}
    data, lit, trainer = assemble(cfg)
    device = trainer.strategy.root_device
    batch = next(iter(data.train_feed()))
    batch = Batch(*(None if part is None else part.to(device) for part in batch))  # type: ignore[arg-type]
    kept = _measure(step := _step(cfg, lit.to(device), batch), device)
    start = perf_counter()
    for _ in range(TRIED):
        step()
    _wait(device)
    seconds = (perf_counter() - start) / TRIED
    sizes = [p.numel() * p.element_size() for p in lit.vae.parameters()]
    # parameters, gradients and an optimiser's two moments
    memory = 4 * sum(sizes) + kept + sum(rows.x.nbytes for rows in data.prepared.values())
    limits = [cfg.trainer.max_steps] if (cfg.trainer.max_steps or -1) >= 0 else []
    limits += [cfg.trainer.max_epochs * data.steps_per_epoch] if (cfg.trainer.max_epochs or -1) >= 0 else []
    return Cost(sum(p.numel() for p in lit.vae.parameters()), memory, seconds, min(limits, default=0))


def _step(cfg: DictConfig, lit: LitVAE, batch: Batch) -> Callable[[], None]:
    """An optimiser step on `batch`."""
    amortised = lit.vae.encoder.amortised  # else its gradients are sparse, and their optimiser is Lightning's to make
    optimizer = build(cfg, "optimizer")(list((lit.vae if amortised else lit.vae.decoder).parameters()))
    shape = lit.objective.samples, len(batch.x), lit.vae.d

    def step() -> None:
        optimizer.zero_grad()
        lit.objective(lit.vae, batch, torch.randn(shape, device=batch.x.device)).loss.mean().backward()
        optimizer.step()

    return step


def _measure(step: Callable[[], None], device: torch.device) -> int:
    """The bytes that a step keeps from its forward pass for its backward pass."""
    sizes: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        step()
    _wait(device)
    return sum(sizes.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _text(cfg: DictConfig, *keys: str) -> str:
    return json.dumps({key: OmegaConf.to_container(cfg[key], resolve=True) for key in keys}, default=str)
