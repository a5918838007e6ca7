"""`vae-lab wandb_workspace`: the views of a W&B project, and a report with the findings of its runs."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import wandb
from omegaconf import DictConfig

from vae_lab import runs
from vae_lab.checks import flag
from vae_lab.commands.tables import plus_minus, shown
from vae_lab.runs import catalogue
from vae_lab.runs.catalogue import Run, short
from vae_lab.runs.files import reason

METRIC = "test/elbo"


def run(cfg: DictConfig) -> None:
    """Saves the workspace and the report and prints where they are; or writes both as JSON, if `cfg.dry_run`.

    Raises:
        ValueError: for a wrong setting, without the package wandb-workspaces, or where W&B has no key or refuses.
    """
    dry = flag("dry_run", cfg.dry_run)
    for key in ("project", "name"):
        if not isinstance(cfg[key], str) or not cfg[key]:
            raise ValueError(f"{key} must be a name, got {cfg[key]!r}")
    if isinstance(cfg.axes, str) or not cfg.axes:
        raise ValueError(f"axes must be a list of keys, as [d,likelihood.s2], got {cfg.axes!r}")
    try:
        from vae_lab.commands import views
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        raise ValueError(
            "wandb_workspace needs the package wandb-workspaces: pip install 'vae-lab[workspace]'"
        ) from None
    selected = catalogue.select(catalogue.read(Path(cfg.outputs)), shlex.split(cfg.where))
    entity = (cfg.entity or "") if dry else account(cfg.entity)
    where, axes = views.Place(entity, cfg.project, cfg.group), [str(axis) for axis in cfg.axes]
    workspace = views.workspace(where, cfg.name, axes)
    report = views.report(where, cfg.name, axes, findings(selected, axes))
    if dry:
        runs.write(path := Path(cfg.file), {"workspace": views.plain(workspace), "report": views.plain(report)})
        print(f"written: {shown(path.absolute())}")
        return
    try:
        found = {"workspace": workspace.save().url, "report": report.save().url}
    except Exception as error:  # wandb's, its transport's or the library's own
        raise ValueError(f"W&B has not saved it: {reason(error)}") from error
    for name, url in found.items():
        print(f"{name:12} {url}")


def account(entity: str | None) -> str:
    """Where the key that is here may write: to `entity`, or else to its owner's own."""
    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False):
        raise ValueError("wandb_workspace needs an account: `wandb login`, or WANDB_API_KEY; dry_run=true needs none")
    try:
        return entity or str(wandb.Api().default_entity)
    except Exception as error:  # whatever W&B raises
        raise ValueError(f"W&B does not answer: {reason(error)}") from error


def findings(selected: Sequence[Run], axes: Sequence[str]) -> str:
    """What the finished runs have shown, in Markdown; runs on different data are told apart."""
    finished = [run for run in selected if METRIC in run.facts and run.facts["state"] == "finished"]
    words = [f"{len(selected)} runs, of which {len(finished)} are finished."]
    protocols = list(dict.fromkeys(protocol(run) for run in finished))
    for found in protocols:
        of = [run for run in finished if protocol(run) == found]
        best = max(of, key=lambda run: run.facts[METRIC])
        words += [
            f"## {found}",
            f"The best of {len(of)}: `{plus_minus(best.record['results'], METRIC)}` nats per datapoint, by",
            f"```\n{catalogue.command(best.record)}\n```",
        ]
        if collapsed := [run for run in of if run.facts.get("test/active_units", 0) < run.facts.get("d", 0)]:
            words.append(f"{len(collapsed)} of them leave latent dimensions unused.")
        for axis in axes:
            values = list(dict.fromkeys(run.facts.get(axis) for run in of))
            if len(values) > 1:
                words.append(table(of, axis))
    return "\n\n".join(words)


def protocol(run: Run) -> str:
    """What scores have to share to be compared."""
    return f"{run.facts.get('data')}, {run.facts.get('preprocessing')}"


def table(of: Sequence[Run], axis: str) -> str:
    """The mean and the best ELBO over the runs that share a value of an axis."""
    rows = [f"| {axis} | runs | mean ELBO | best ELBO |", "|---|---|---|---|"]
    values: dict[str, list[float]] = {}
    for run in sorted(of, key=lambda run: (not isinstance(run.facts.get(axis), int | float), run.facts.get(axis))):
        values.setdefault(short(run.facts.get(axis, "")), []).append(run.facts[METRIC])
    rows += [f"| {v} | {len(x)} | {sum(x) / len(x):.3f} | {max(x):.3f} |" for v, x in values.items()]
    return "\n".join(rows)
