"""`vae-lab train`: a run is trained once. One that is finished shows its results; one that was stopped goes on.

All that can be told from a run's record is told without importing torch.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vae_lab import garbage, runs
from vae_lab.checks import flag
from vae_lab.commands import machine
from vae_lab.commands.tables import paths_list, plus_minus, results_table, shown
from vae_lab.runs import identity, record

if TYPE_CHECKING:
    from vae_lab.commands.training import Together


def run(cfg: DictConfig, together: "Together | None" = None) -> float | None:
    """Trains one run, unless that is done; the value is its best val/elbo, for sweepers.

    Args:
        together: where others are trained in this process
    Raises:
        ValueError: for a mistake in the configuration or the data, before training and before anything is written.
        FloatingPointError: if training breaks; the last good checkpoint stays.
        Busy: if another process trains this run, and `wait` is false.
        Preempted: if a signal stopped it; the same command goes on where it stopped.
    """
    folder, force, wait = Path(cfg.paths.run).absolute(), flag("force", cfg.force), flag("wait", cfg.wait)
    try:
        if cfg.check is not None and flag("check", cfg.check):
            from vae_lab.commands import check

            check.run(cfg)
            return None
        fingerprint = identity.fingerprint(cfg)
        cfg.paths.run = str(folder)  # whatever else is found there from now on
        if _rank() > 0:
            follow(cfg, folder)
            return None
        if not force and record.state(folder) == "finished":
            return show(cfg, folder)
        with record.claim(folder, wait) as state:
            if (other := rival(folder, fingerprint)) is None:
                if not force and state == "finished":  # another process was quicker
                    return show(cfg, folder)
                return train(cfg, folder, fingerprint, state, together)
    finally:
        for empty in (folder, Path(HydraConfig.get().runtime.output_dir)):  # which Hydra has made
            record.tidy(empty)
    cfg.paths.run = str(other)
    return run(cfg, together)


def rival(folder: Path, fingerprint: str) -> Path | None:
    """The folder of this very run that another wording of its command made at the same moment, if that one stays.

    Both processes hold the lock of their own folder before they look for others, so that one of them sees the other.
    """
    if not folder.name.endswith(f"-{fingerprint}") or record.read(folder):
        return None
    for other in (path for path in identity.existing(folder.parent, fingerprint) if path != folder):
        while other > folder and record.alive(other) and not record.read(other):
            sleep(0.1)  # it gives way, unless it looked before there was this one
        if record.read(other) or (other < folder and record.alive(other)):
            return other
    return None


def train(
    cfg: DictConfig, folder: Path, fingerprint: str, state: str, together: "Together | None" = None
) -> float | None:
    """Trains the run in `folder`, which is this process's: from its last checkpoint if there is one.

    What was there before is moved aside where training begins anew: if `cfg.force`, or if nothing was saved.
    """
    goes_on = not cfg.force and state in ("partial", "failed")
    known = record.read(folder) or {} if goes_on else {}
    if cfg.logger and cfg.logger.get("id") == fingerprint:
        # a run that is trained anew has a W&B run of its own
        n = record.former(folder) + bool(record.content(folder))
        cfg.logger.id = known.get("wandb") or (f"{fingerprint}-{n}" if n else fingerprint)

    with garbage.spared():
        if cfg.logger:  # W&B before torch: each of its classes has Python look through all modules that are there
            OmegaConf.to_container(cfg.logger, resolve=True)
        machine.tune()
        from vae_lab.commands import training  # torch

    parts = training.assemble(cfg, together)  # the last that can be wrong with the configuration and the data
    *_, trainer = parts
    if not goes_on:
        record.aside(folder)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hydra = HydraConfig.get()
    overrides, sources = list(hydra.overrides.task), hydra.runtime.config_sources
    folders = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    arguments = [*folders, *(word for word in overrides if not word.lstrip("+").startswith("force="))]
    checkpoint = training.LAST if goes_on and (folder / training.LAST).exists() else None
    record.begin(folder, fingerprint, overrides, checkpoint, (cfg.logger or {}).get("id"), arguments)
    runs.write(folder / runs.CONFIG, config)
    runs.write(folder / runs.ENVIRONMENT, runs.environment(overrides))
    if checkpoint:
        print(f"going on from {shown(folder / checkpoint)}", flush=True)
    start, ended = perf_counter(), "failed"
    metrics: dict[str, float | None] = {}
    value: float | None = None
    error: str | None = None
    try:
        metrics, value = training.fit(parts, config | {"fingerprint": fingerprint}, folder, checkpoint)
        runs.write(folder / runs.METRICS, metrics)
        ended = "finished"
    except record.Pruned as found:
        ended, value, error = "partial", found.value, str(found)
    except BaseException as failure:
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        ended, error = ("partial", None) if record.interrupted(failure) else (ended, error)
        raise
    finally:
        record.end(folder, ended, perf_counter() - start, metrics, value, error, machine.peaks())
        if ended == "partial":
            again = shlex.join(["vae-lab", "train", *arguments])
            print(f"stopped; the same command goes on from there: {again}", file=sys.stderr, flush=True)
    tell(folder, metrics, training.loggers.places(trainer.loggers, folder))
    return value


def follow(cfg: DictConfig, folder: Path) -> None:
    """What a run's other processes do: train with the first, which has claimed the folder and keeps the record."""
    with garbage.spared():
        machine.tune()
        from vae_lab.commands import training

    parts = training.assemble(cfg)
    first = record.leader(folder)
    if not first.finished:
        with suppress(record.Pruned):
            training.fit(parts, {}, folder, first.checkpoint)


def show(cfg: DictConfig, folder: Path) -> float | None:
    """Prints the results of a finished run; an agent of a W&B sweep gets them too."""
    known = record.read(folder) or {}
    if "WANDB_SWEEP_ID" in os.environ and cfg.logger:
        from vae_lab.commands import again  # torch

        again.log(cfg, folder)
    print(f"finished on {known['ended']}, in {known['seconds']:.0f} s; force=true trains it again", flush=True)
    tell(folder, known["results"], {})
    return known["value"]


def tell(folder: Path, metrics: Mapping[str, float | None], logs: Mapping[str, str]) -> None:
    """Prints the test metrics and where everything is."""
    console = Console()
    names = [
        n
        for n in ("test/elbo", "test/rec", "test/kl", "test/bits_per_dim", "test/active_units", "val/elbo")
        if n in metrics
    ]
    results_table("nats per datapoint", {n: plus_minus(metrics, n) for n in names}, console)
    here = shown(folder)
    places = {"run": here, "metrics": here / runs.METRICS, "checkpoints": here / "checkpoints"}
    rows = {name: str(place) for name, place in (places | {"pictures": here / "pictures"}).items() if place.exists()}
    paths_list(rows | dict(logs), console)


def _rank() -> int:
    """This process's place among those of its run, however they were started; 0 is the first, or the only one."""
    return next((int(os.environ[n]) for n in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if n in os.environ), 0)
