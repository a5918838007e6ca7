"""`vae-lab evaluate run=...`: what a finished run is worth, on data held out from training."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from vae_lab import runs
from vae_lab.checks import number, one_of, whole
from vae_lab.commands import machine
from vae_lab.commands.common import bit_levels, quieten
from vae_lab.commands.summary import add_to_summary
from vae_lab.commands.tables import paths_list, plus_minus, results_table
from vae_lab.data.module import InMemory
from vae_lab.evaluation import annealing, estimators, measures
from vae_lab.evaluation.chunks import Progress
from vae_lab.evaluation.estimators import TRUSTED, Estimate
from vae_lab.evaluation.images import images
from vae_lab.evaluation.protocol import Protocol
from vae_lab.evaluation.refinement import fitted, refine, with_encoder
from vae_lab.interfaces import Batch
from vae_lab.lit import LitVAE
from vae_lab.objectives import Elbo
from vae_lab.seeds import generator
from vae_lab.vae import VAE

Values = dict[str, float | None]


class Task(NamedTuple):
    """A run that is to be scored: its model, the first data of a split, and the settings."""

    vae: VAE
    batch: Batch
    data: InMemory
    cfg: DictConfig
    V: int
    seed: int
    progress: Progress

    def generator(self, name: str) -> torch.Generator:
        """The noise of one estimator: the same whatever others there are."""
        return generator("cpu", self.seed, self.cfg.split, name)


class Estimator(NamedTuple):
    """What one name under `evaluation.estimators` stands for."""

    compute: Callable[[Task], Values]
    samples: tuple[str, ...]  # the settings that its protocol states
    shown: tuple[str, ...]  # the values that are printed


def run(cfg: DictConfig) -> float | None:
    """Scores the run in `cfg.run`, prints the scores and keeps them in its folder; the value is the ELBO, or the first
    score if that was not asked for.

    Raises:
        ValueError: for a wrong setting, a folder that holds no finished run, or what this run's parts cannot give.
    """
    check_values(cfg)
    folder, packages, console = Path(cfg.run), list(cfg.packages), Console()
    quieten()
    machine.tune()
    vae = runs.load(folder, packages, cfg.checkpoint)
    V = runs.load_objective(folder, packages).samples if cfg.V is None else whole("V", cfg.V)
    source, preprocessing, sampling, trained = runs.load_data(folder, packages, cfg.data.root)
    data = InMemory(source, preprocessing, sampling, trained)
    seed = trained if cfg.seed is None else cfg.seed
    batch = first(data, cfg)
    task = Task(vae, batch, data, cfg, V, seed, lambda done, of: None)
    check_parts(task)

    names, path, main = list(dict.fromkeys(cfg.evaluation.estimators)), folder / runs.EVALUATION, []
    summary: dict[str, Any] = {}
    for name in names:
        known = protocol(name, task, runs.read_config(folder))
        with progress(console, name) as told:
            scores = runs.finite(ESTIMATORS[name].compute(task._replace(progress=told)))
        key = title(known, task)
        # at once: an evaluation that is interrupted keeps what it has found
        kept = json.loads(path.read_text()) if path.exists() else {}
        runs.write(path, kept | {key: {"protocol": asdict(known)} | scores})
        rows = {n: plus_minus(scores, n) for n in ESTIMATORS[name].shown if n in scores}
        unit = "" if name == "images" else ", nats per datapoint"
        results_table(f"{folder}: {key}{unit}", rows, console)
        if scores.get("unconverged"):
            few = f"{scores['unconverged']:.0f} of {known.n} data, of which a few samples decide (see `ess`)"
            warn(f"{name} has not converged for {few}", console)
        prefix = f"evaluation/{cfg.split}/{name}/"
        summary |= {f"{prefix}{n}": v for n, v in scores.items()} | {f"{prefix}protocol": key}
        main.append(scores[ESTIMATORS[name].shown[0]])
    paths_list({"written": str(path)}, console)
    if failure := add_to_summary(folder, summary):
        warn(f"W&B was not told: {failure}", console)
    return main[names.index("elbo") if "elbo" in names else 0]


def check_values(cfg: DictConfig) -> None:
    """Raises ValueError for a wrong setting, before anything is loaded."""
    if OmegaConf.is_missing(cfg, "run"):
        raise ValueError("run must be a run's folder: evaluate run=outputs/...")
    one_of("split", cfg.split, ("train", "val", "test"))
    if cfg.V is not None:
        whole("V", cfg.V)
    if cfg.seed is not None:
        whole("seed", cfg.seed, least=0)
    e = cfg.evaluation
    names = e.estimators
    if isinstance(names, str) or not names:
        raise ValueError(f"evaluation.estimators must be a list, as [elbo,importance], got {names!r}")
    for name in names:
        one_of("evaluation.estimators", name, ESTIMATORS)
    for key in ("K", "m", "V", "temperatures", "chains", "leapfrog", "refine_steps", "max_memory"):
        whole(f"evaluation.{key}", e[key])
    if e.max_examples is not None:
        whole("evaluation.max_examples", e.max_examples)
    number("evaluation.refine_lr", e.refine_lr, above=0)
    number("evaluation.epsilon", e.epsilon, above=0)
    number("evaluation.delta", e.delta, least=0)


def check_parts(task: Task) -> None:
    """Raises ValueError for an estimator that this run's parts cannot give, before anything is computed."""
    names = set(task.cfg.evaluation.estimators)
    if names & {"ais", "bdmc"}:
        estimators.require_density("prior", task.vae.p_z(), task.batch)
    if names & {"importance", "gaps", "information"}:
        estimators.require_densities(task.vae, task.batch)
    if "images" in names and len(task.vae.shape) != 3:
        raise ValueError(f"evaluation.estimators: images needs data [C, H, W], got {list(task.vae.shape)}")
    if "bdmc" in names:
        annealing.simulate(task.vae, 1, task.generator("bdmc"), label_of(task, 1))


def first(data: InMemory, cfg: DictConfig) -> Batch:
    """The first data of the split, `max_examples` at most."""
    feed = data.feed(cfg.split)
    if len(feed) == 0:
        raise ValueError(f"split {cfg.split!r} of this run holds no data")
    x, index, label = feed.rows
    n = cfg.evaluation.max_examples
    return Batch(x[:n], index[:n], None if label is None else label[:n])


def protocol(name: str, task: Task, config: runs.Config) -> Protocol:
    """How `name` is computed."""
    e, cfg = task.cfg.evaluation, task.cfg
    values = {"V": task.V} if name == "elbo" else {key: e[key] for key in ESTIMATORS[name].samples}
    root = cfg.data.root
    return Protocol(
        estimator=name,
        data=config["data"]["_target_"].rpartition(".")[2] + ("" if root is None else f" {root}"),
        preprocessing=config["preprocessing"]["_target_"].rpartition(".")[2],
        split=cfg.split,
        n=len(task.data.feed(cfg.split).rows.x) if name == "elbo" else len(task.batch.x),
        samples=" ".join(f"{key}={value}" for key, value in values.items()),
        checkpoint=cfg.checkpoint,
        seed=task.seed,
    )


def title(known: Protocol, task: Task) -> str:
    """A protocol as a key of evaluation.json: what is not as usual is said."""
    words = [] if known.estimator == "elbo" else [known.estimator]
    words += [f"split={known.split}", *known.samples.split()]
    words += [] if known.estimator == "elbo" else [f"n={known.n}"]
    words += [f"checkpoint={known.checkpoint}"]
    words += [] if task.cfg.seed is None else [f"seed={known.seed}"]
    words += [] if task.cfg.data.root is None else [f"data.root={task.cfg.data.root}"]
    return " ".join(words)


def warn(message: str, console: Console) -> None:
    console.print(f"warning: {message}", style="yellow", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress(console: Console, name: str) -> Iterator[Progress]:
    """A bar, on a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(name, total=None)
        yield lambda done, of: bar.update(row, completed=done, total=of)


# --- the estimators


def elbo(task: Task) -> Values:
    """As the run's own test has it."""
    task.data.setup()
    lit = LitVAE(task.vae, Elbo(task.V), _untrained, _untrained, task.seed, levels=bit_levels(task.vae, task.data))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    stage, evaluate = ("val", trainer.validate) if task.cfg.split == "val" else ("test", trainer.test)
    [found] = evaluate(lit, dataloaders=task.data.feed(task.cfg.split), verbose=False)
    task.vae.eval()
    return {name.removeprefix(f"{stage}/"): value for name, value in found.items()}


def naive_mc(task: Task) -> Values:
    rng, e = task.generator("naive_mc"), task.cfg.evaluation
    return estimated(estimators.naive_mc(task.vae, task.batch, e.m, rng, e.max_memory, task.progress))


def importance_(task: Task) -> Values:
    rng, e = task.generator("importance"), task.cfg.evaluation
    vae, batch = fitted(task.vae, task.batch, rng)
    return estimated(estimators.importance(vae, batch, e.K, rng, e.max_memory, task.progress))


def ais(task: Task) -> Values:
    rng, e = task.generator("ais"), task.cfg.evaluation
    return estimated(
        annealing.ais(
            task.vae, task.batch, e.temperatures, e.chains, rng, e.leapfrog, e.max_memory, progress=task.progress
        ),
        trusted=min(TRUSTED, e.chains / 4),
    )


def bdmc(task: Task) -> Values:
    rng, e, n = task.generator("bdmc"), task.cfg.evaluation, len(task.batch.x)
    lower, upper = annealing.bdmc(
        task.vae, n, e.temperatures, e.chains, rng, e.leapfrog, e.max_memory, label_of(task, n), task.progress
    )
    return mean("gap", upper.log_p - lower.log_p) | mean("lower", lower.log_p) | mean("upper", upper.log_p)


def gaps(task: Task) -> Values:
    rng, e = task.generator("gaps"), task.cfg.evaluation
    vae, batch = fitted(task.vae, task.batch, rng)
    free = refine(vae, batch.x, e.refine_steps, e.refine_lr, label=batch.label, generator=rng)
    log_p = estimators.importance(with_encoder(vae, free), batch, e.K, rng, e.max_memory, task.progress)
    eps = torch.randn(e.V, len(batch.x), vae.d, generator=rng)
    # (4)  KL(q(z | x) || p(z | x)) = log p(x) - ELBO
    parts = measures.identity(estimators.bound(vae, batch, eps, e.max_memory), log_p)
    split = measures.gaps(vae, free, batch, log_p, e.V, rng, e.max_memory)
    found = mean("log_p", parts.log_p) | mean("elbo", parts.elbo) | mean("kl_posterior", parts.kl, parts.kl_error)
    found |= mean("approximation", split.approximation, split.approximation_error)
    return found | mean("amortisation", split.amortisation, split.amortisation_error) | reliability(log_p)


def information(task: Task) -> Values:
    rng, e = task.generator("information"), task.cfg.evaluation
    vae, batch = fitted(task.vae, task.batch, rng)
    found = measures.information(vae, batch, e.V, rng, e.max_memory, task.progress)
    values = mean("rate", found.rate) | mean("rec", found.rec) | mean("distortion", found.distortion)
    values |= mean("mutual_information", found.mutual) | mean("marginal_kl", found.marginal_kl)
    values |= {"log_n": math.log(len(batch.x)), "active_units": float(measures.active_units(found.means))}
    if found.kl_dims is not None:
        values |= {"collapsed": float(measures.collapsed(found.kl_dims, e.epsilon, e.delta).sum())}
        values |= {f"kl_dim/{j:0{len(str(vae.d - 1))}d}": float(kl) for j, kl in enumerate(found.kl_dims.mean(0))}
    return values


def images_(task: Task) -> Values:
    vae, batch = fitted(task.vae, task.batch, task.generator("images"))
    return dict(images(vae, batch, task.cfg.evaluation.max_memory))


def estimated(found: Estimate, trusted: float = TRUSTED) -> Values:
    """An estimate of log p as values: means over data, n times the mean (17)-(18), and how far it can be trusted."""
    values = mean("log_p", found.log_p) | {"log_p_total": float(found.log_p.sum())}
    return values | mean("log_p", found.log_p, found.error) | reliability(found, trusted)


def reliability(found: Estimate, trusted: float = TRUSTED) -> Values:
    return {"ess": float(found.ess.median()), "unconverged": float((found.ess < trusted).sum())}


def mean(name: str, values: Tensor, errors: Tensor | None = None) -> Values:
    """The mean over the data with its standard error over the data; and that which sampling gave it, where known."""
    n = len(values)
    found: Values = {name: float(values.mean()), f"{name}_se": float(values.std(correction=0) / n**0.5)}
    return found | ({} if errors is None else {f"{name}_sampling_se": float((errors**2).sum().sqrt() / n)})


def label_of(task: Task, n: int) -> Tensor | None:
    """Labels for n data that a conditional model is to make."""
    return task.batch.label[:n] if task.vae.decoder.classes and task.batch.label is not None else None


def _untrained(*_: object) -> NoReturn:
    raise AssertionError("an evaluation does not train")


LOG_P = ("log_p", "ess")
ANNEALED = ("temperatures", "chains", "leapfrog")
ESTIMATORS = {
    "elbo": Estimator(elbo, ("V",), ("elbo", "rec", "kl", "active_units", "elbo_total", "bits_per_dim")),
    "naive_mc": Estimator(naive_mc, ("m",), LOG_P),
    "importance": Estimator(importance_, ("K",), LOG_P),
    "ais": Estimator(ais, ANNEALED, LOG_P),
    "bdmc": Estimator(bdmc, ANNEALED, ("gap", "lower", "upper")),
    "gaps": Estimator(
        gaps,
        ("K", "V", "refine_steps", "refine_lr"),
        ("kl_posterior", "approximation", "amortisation", "log_p", "elbo"),
    ),
    "information": Estimator(
        information,
        ("V", "epsilon", "delta"),
        ("mutual_information", "rate", "marginal_kl", "log_n", "distortion", "rec", "active_units", "collapsed"),
    ),
    "images": Estimator(images_, (), ("mse", "psnr", "ssim")),
}
