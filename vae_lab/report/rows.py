"""Runs and what they reached, one row each: what page, tables and data frame are made of. Needs no torch."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vae_lab.report import protocols
from vae_lab.report.protocols import Protocol
from vae_lab.runs import catalogue, identity
from vae_lab.runs.catalogue import Broken, Run, number
from vae_lab.runs.files import EVALUATION, reason

Entries = dict[tuple[str, str], dict[str, Any]]  # (split, estimator) -> what evaluate.py found


class Row(NamedTuple):
    """A run, and its numbers by metric: `test/elbo`, or `evaluation/test/importance/log_p`, as W&B has them.

    Attributes:
        results: values; what was not finite is None
        errors: their standard errors over the data
        protocols: how each value was found
    """

    run: Run
    results: dict[str, float | None]
    errors: dict[str, float]
    protocols: dict[str, Protocol]

    @property
    def name(self) -> str:
        """What was asked for, readable."""
        return identity.run_name([str(word) for word in self.run.record.get("overrides") or []])


class Rows(NamedTuple):
    """The runs of a folder that are meant, and the folders of which nothing could be made."""

    outputs: Path
    rows: list[Row]
    broken: list[Broken]

    def metrics(self) -> list[str]:
        """Those of which some run has a number, in the order in which they were found."""
        return list(dict.fromkeys(m for row in self.rows for m, value in row.results.items() if value is not None))

    def axes(self) -> list[str]:
        """The keys in which the runs differ."""
        return catalogue.differences([row.run for row in self.rows])


def collect(outputs: str | Path, where: str | Sequence[str] = ()) -> Rows:
    """The runs in `outputs` that meet the conditions `where`, "data=digits d=8", with all their numbers.

    Raises:
        ValueError: for a folder that is not there, or a condition that makes no sense.
    """
    outputs = Path(outputs).expanduser()
    if not outputs.is_dir():
        raise ValueError(f"outputs must be the folder of all runs; there is no folder {outputs}")
    everything = [run for run in catalogue.read(outputs) if catalogue.is_sound(run)]
    broken = catalogue.broken(outputs, {run.folder for run in everything})
    filters = shlex.split(where) if isinstance(where, str) else list(where)
    if filters and not everything:
        raise ValueError(f"where: there are no runs in {outputs}")
    selected = catalogue.select(everything, filters)
    found, torn = [], []
    for run in selected:
        try:
            found.append(_evaluation(run))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            found.append([])
            torn.append(
                Broken(run.folder, f"{EVALUATION} cannot be read ({reason(error)}); the run is here without it")
            )
    return Rows(
        outputs, [_row(run, entries) for run, entries in zip(selected, _usual(found), strict=True)], broken + torn
    )


def _row(run: Run, entries: Entries) -> Row:
    results: dict[str, float | None] = {}
    errors: dict[str, float] = {}
    how: dict[str, Protocol] = {}
    own = run.record.get("results") or {}
    for metric in (m for m in own if not m.endswith("_se")):
        results[metric], how[metric] = number(own[metric]), protocols.of_run(run, metric)
        if (error := number(own.get(f"{metric}_se"))) is not None:
            errors[metric] = error
    for (split, estimator), entry in entries.items():
        for name in (n for n in entry if n != "protocol" and not n.endswith("_se")):
            metric = f"evaluation/{split}/{estimator}/{name}"
            results[metric] = number(entry[name])
            how[metric] = protocols.of_evaluation(run, entry["protocol"], name)
            if (error := number(entry.get(f"{name}_se"))) is not None:
                errors[metric] = error
    return Row(run, results, errors, how)


def _evaluation(run: Run) -> list[dict[str, Any]]:
    """What `evaluate` found of a run; none where it was not asked.

    Raises:
        OSError, ValueError, TypeError, KeyError, AttributeError: for a file of another making.
    """
    path = run.folder / EVALUATION
    if not path.exists():
        return []
    entries = list(json.loads(path.read_text()).values())
    for entry in entries:
        protocols.of_evaluation(run, entry["protocol"], "log_p")
    return entries


def _usual(found: Sequence[Sequence[Mapping[str, Any]]]) -> list[Entries]:
    """Of several scores of one kind that a run has, with K = 100 and K = 1000, say: that which most runs have."""

    def how(entry: Mapping[str, Any]) -> tuple[object, ...]:
        return tuple(str(value) for key, value in sorted(entry["protocol"].items()) if key != "seed")

    count = Counter(kind for entries in found for kind in {how(entry) for entry in entries})
    chosen: list[Entries] = []
    for entries in found:
        mine: Entries = {}
        for entry in sorted(entries, key=lambda entry: count[how(entry)]):  # of equals the last in the file
            mine[entry["protocol"]["split"], entry["protocol"]["estimator"]] = dict(entry)
        chosen.append(mine)
    return chosen
