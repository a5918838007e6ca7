"""What the loggers of a run are told besides its metrics: what is run, what came of it, and that it is over."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from vae_lab import runs
from vae_lab.callbacks import WandB
from vae_lab.commands.tables import shown
from vae_lab.runs import record
from vae_lab.runs.catalogue import columns
from vae_lab.runs.files import reason

BEST = {f"{split}/{term}": "max" for split in ("train", "val") for term in ("elbo", "rec")}
"""What W&B's summary keeps of a curve that has a best value; of all else it keeps the last."""

SHOWN = {"d", "objective.V", "likelihood.s2", "seed"}
RESULTS = ("test/elbo", "test/kl", "test/rec", "test/active_units", "test/bits_per_dim", "val/elbo")
"""TensorBoard's tab of hyper-parameters has these and what was asked for, with these results: more fill no screen."""

STEP = "trainer/global_step"
KL = "kl_dims"
"""The table of the KL of each latent dimension, in nats per datapoint."""


def describe(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Tells the loggers what is run, under the keys that the user types, and which way each metric is better."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.begin_with(typed(config))
        logger.log_hyperparams(typed(config))
        if isinstance(logger, WandbLogger):
            for metric, summary in BEST.items():
                logger.experiment.define_metric(metric, step_metric=STEP, summary=summary)


def typed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of a configuration, by the keys that are typed: `d`, `likelihood.s2`, `encoder`; and the folder."""
    aside = ("logger", "check", "force", "wait", "paths.outputs")
    return {
        key: value
        for key, value in columns(config).items()
        if not any(key == a or key.startswith(f"{a}.") for a in aside) and "._" not in key and key != "trainer"
    }


def conclude(loggers: Sequence[Logger], config: Mapping[str, Any], folder: Path, step: int) -> None:
    """Tells the loggers what came of the run in `folder`, whose history is complete: to W&B the KL of each latent
    dimension as a table, and the artifacts that were asked for; to TensorBoard the hyper-parameters with the results.
    """
    results = latest(folder)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            try:
                if rows := list(kl_rows(results)):
                    logger.experiment.log({KL: table(rows), STEP: step})
                if isinstance(logger, WandB) and logger.log_artifacts:
                    for artifact in artifacts(folder, logger.experiment.id):
                        logger.experiment.log_artifact(artifact)
            except Exception as error:  # whatever W&B or its server raises: the run has finished nonetheless
                print(f"warning: W&B was not told everything: {reason(error)}", file=sys.stderr, flush=True)
        elif isinstance(logger, TensorBoardLogger):
            asked = {word.lstrip("+~").partition("=")[0] for word in (record.read(folder) or {}).get("overrides", [])}
            asked = {key for key in asked | SHOWN if not key.startswith("callbacks.")}
            given = {key: value for key, value in typed(config).items() if key in asked}
            parameters(logger, given, [name for name in RESULTS if name in results])


def latest(folder: Path) -> dict[str, float]:
    """The last value of each metric in a run's history."""
    values = {name: value for row in runs.rows(folder / runs.HISTORY) for name, value in row.items()}
    return {name: value for name, value in values.items() if value is not None and name != "step"}


def summary(folder: Path) -> dict[str, Any]:
    """What W&B's summary says of a run that has finished, from the run's own files."""
    history = runs.rows(folder / runs.HISTORY)
    found: dict[str, Any] = dict(latest(folder))
    for name in BEST:
        if values := [row[name] for row in history if row.get(name) is not None]:
            found[name] = {"max": max(values)}
    if rows := list(kl_rows(found)):
        found[KL] = table(rows)
    found |= {f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures(folder)}
    return found | {STEP: max((row["step"] for row in history), default=0)}


def pictures(folder: Path) -> list[Path]:
    """The last ones of each kind."""
    return sorted(path for path in (folder / "pictures").glob("*.png") if "-epoch" not in path.name)


def kl_rows(results: Mapping[str, float]) -> Iterator[list[Any]]:
    """The KL of each latent dimension, in nats per datapoint: rows of dimension, split, KL."""
    for name, value in results.items():
        split, _, rest = name.partition("/kl_dim/")
        if rest.isdecimal():
            yield [int(rest), split, value]


def table(rows: Sequence[list[Any]]) -> wandb.Table:
    """The rows of `kl_rows` for W&B."""
    return wandb.Table(columns=["dimension", "split", "KL"], data=[*rows])


def artifacts(folder: Path, name: str) -> Iterator[wandb.Artifact]:
    """The model, which is the best checkpoint with its configuration; and the report: history and pictures."""
    model = wandb.Artifact(f"model-{name}", type="model")
    report = wandb.Artifact(f"report-{name}", type="report")
    for artifact, paths in (
        (model, [folder / "checkpoints" / "best.ckpt", folder / runs.CONFIG]),
        (report, [folder / runs.CONFIG, folder / runs.HISTORY, *pictures(folder)]),
    ):
        for path in paths:
            if path.exists():
                artifact.add_file(str(path), str(path.relative_to(folder)), policy="immutable")
        yield artifact


def parameters(logger: TensorBoardLogger, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Fills TensorBoard's tab of hyper-parameters, whose columns of results are the last values of `metrics`."""
    from torch.utils.tensorboard import FileWriter
    from torch.utils.tensorboard.summary import hparams

    plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in config.items() if v is not None}
    writer = FileWriter(logger.log_dir)  # Lightning's own way logs the metrics once more
    for summary in hparams(plain, dict.fromkeys(metrics, 0.0)):
        writer.add_summary(summary)
    writer.close()


def close(loggers: Sequence[Logger], code: int) -> None:
    """Ends each logger's run, so that the next job of this process begins one of its own."""
    for logger in loggers:
        logger.finalize("success" if code == 0 else "failed")
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger._experiment.finish(exit_code=code)


def places(loggers: Sequence[Logger], folder: Path) -> dict[str, str]:
    """Where the loggers' runs are."""
    rows = {}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            here = shown(Path(logger.save_dir or ".").absolute() / record.WANDB)
            offline = f"offline, without credentials; to upload: wandb sync {here}/offline-run-*-{logger.version}*"
            rows["W&B"] = offline if logger.experiment.offline else str(logger.experiment.url)
        elif logger.log_dir:
            rows["log"] = str(shown(Path(logger.log_dir)))
    return rows
