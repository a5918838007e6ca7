"""Runs as a data frame, for notebooks and for files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_lab.report.rows import Row, collect
from vae_lab.runs import catalogue
from vae_lab.runs.catalogue import short

if TYPE_CHECKING:
    import pandas as pd

RUN = ("run", "fingerprint", "name", "state", "started", "seconds", "command", "error")


def frame(outputs: str | Path = "outputs", where: str | Sequence[str] = ()) -> "pd.DataFrame":
    """The runs in `outputs`, one a row, by name.

        df = vae_lab.report.frame("outputs/", "data=digits d=8")
        df.groupby("likelihood.s2")["test/elbo"].agg(["mean", "sem", "count"])

    Columns:
        run, fingerprint, name, state, started, seconds, command, error
        one for each flat key of the configuration, `d`, `likelihood`, `likelihood.s2`: numbers, truth values, or texts
        one for each metric, `test/elbo`, `evaluation/test/importance/log_p`, in nats per datapoint unless its name says
            otherwise, with the standard error over the data in `test/elbo_se` where there is one
        `test/elbo:protocol` and so on: how the number was found, as text; those with different ones do not compare

    What a run does not have is missing.

    Args:
        where: conditions, as those of `vae-lab runs ls`: a text, or one in each item
    Raises:
        ValueError: for a folder that is not there, a condition that makes no sense, or where pandas is not installed.
    """
    return tabulated(collect(outputs, where).rows)


def tabulated(rows: Sequence[Row]) -> "pd.DataFrame":
    """The data frame of these runs."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ValueError("a data frame needs pandas: pip install 'vae-lab[report]'") from error
    keys = sorted({key for row in rows for key in row.run.config}, key=lambda key: (key.count("."), key))
    columns: dict[str, list[Any]] = {name: [_about(row, name) for row in rows] for name in RUN}
    columns |= {key: [row.run.config.get(key) for row in rows] for key in keys if key not in columns}
    for metric in dict.fromkeys(metric for row in rows for metric in row.results):
        columns[metric] = [row.results.get(metric) for row in rows]
        if any(metric in row.errors for row in rows):
            columns[f"{metric}_se"] = [row.errors.get(metric) for row in rows]
        if "/kl_dim/" not in metric:
            columns[f"{metric}:protocol"] = [
                str(row.protocols[metric]) if metric in row.protocols else None for row in rows
            ]
    typed = {name: _typed(values) for name, values in columns.items()}
    return pd.DataFrame({name: pd.Series(values, dtype=kind) for name, (values, kind) in typed.items()})


def _about(row: Row, name: str) -> object:
    known = {"run": row.run.folder.name, "name": row.name, "state": row.run.facts["state"]}
    known |= {"command": catalogue.command(row.run.record)}
    return known.get(name, row.run.record.get(name))


def _typed(values: list[Any]) -> tuple[list[Any], str]:
    """Values of one kind, and the kind: numbers, truth values, or texts; None is missing."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, bool) for value in present):
        return values, "boolean"
    # an infinite float is a number to pandas, and an int that no float can hold is none
    if present and all(isinstance(value, float) or catalogue.number(value) is not None for value in present):
        whole = all(isinstance(value, int) and abs(value) < 2**63 for value in present)
        return values, "Int64" if whole else "float64"
    return [None if value is None else value if isinstance(value, str) else short(value) for value in values], "string"
