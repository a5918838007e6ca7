"""`vae-lab evaluate run=...`: the ELBO, KL and reconstruction of a finished run on data held out from training."""

import json
from pathlib import Path
from typing import NoReturn

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vae_lab import runs
from vae_lab.checks import one_of
from vae_lab.commands.common import paths_list, plus_minus, quieten, results_table
from vae_lab.data.module import InMemory
from vae_lab.lit import LitVAE
from vae_lab.objectives import Elbo


def run(cfg: DictConfig) -> float | None:
    """Scores the run in `cfg.run`, prints the scores and keeps them in its folder; the value is the ELBO.

    Raises:
        ValueError: for a folder that holds no finished run, or an unknown split.
    """
    if OmegaConf.is_missing(cfg, "run"):
        raise ValueError("run must be a run's folder: evaluate run=outputs/...")
    folder, packages = Path(cfg.run), list(cfg.packages)
    split = one_of("split", cfg.split, ("train", "val", "test"))
    quieten()
    vae = runs.load(folder, packages, cfg.checkpoint)
    objective = runs.load_objective(folder, packages)
    V = objective.samples if cfg.V is None else cfg.V
    source, preprocessing, sampling, seed = runs.load_data(folder, packages)
    lit = LitVAE(vae, Elbo(V), _untrained, _untrained, seed)
    feed = InMemory(source, preprocessing, sampling, seed).feed(split)
    if len(feed) == 0:
        raise ValueError(f"split {split!r} of this run holds no data")
    trainer = pl.Trainer(logger=False, devices=1, enable_progress_bar=False, enable_model_summary=False)
    stage, evaluate = ("val", trainer.validate) if split == "val" else ("test", trainer.test)
    [found] = evaluate(lit, dataloaders=feed, verbose=False)
    scores = runs.finite({name.removeprefix(f"{stage}/"): value for name, value in found.items()})

    protocol = f"split={split} V={V} checkpoint={cfg.checkpoint}"
    path = folder / runs.EVALUATION
    kept = json.loads(path.read_text()) if path.exists() else {}
    runs.write(path, kept | {protocol: scores})
    console = Console()
    rows = {name: plus_minus(scores, name) for name in ("elbo", "rec", "kl", "active_units")}
    results_table(f"{folder}: {protocol}, nats per datapoint", rows, console)
    paths_list({"written": str(path)}, console)
    return scores["elbo"]


def _untrained(*_: object) -> NoReturn:
    raise AssertionError("an evaluation does not train")
