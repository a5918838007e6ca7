"""All that the page shows, as plain JSON."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from vae_lab.checks import closest
from vae_lab.report import curves, oracle
from vae_lab.report.collapse import units
from vae_lab.report.metrics import measure, measures, ranked
from vae_lab.report.oracle import Oracles
from vae_lab.report.protocols import Protocol
from vae_lab.report.rows import Row, Rows
from vae_lab.report.statistics import SEED
from vae_lab.report.thumbnails import thumbnails
from vae_lab.runs import catalogue, identity
from vae_lab.runs.catalogue import Broken, number, short
from vae_lab.runs.files import HISTORY, reason, tail

PICTURES, CURVES = 4_000_000, 2_500_000  # bytes of the page
POINT = 9  # bytes of a number in it


def payload(found: Rows, x: str | None = None, y: str | None = None, color: str | None = None) -> dict[str, Any]:
    """What `page.render` takes: runs and what they reached, in what they differ, what the linear oracle says.

    Args:
        x, color: keys in which the runs differ; y: a metric; None: chosen by what there is
    Raises:
        ValueError: for another key or metric, with the closest there is.
    """
    rows = found.rows
    axes, metrics = [axis(rows, key) for key in found.axes()], measures(found)
    defaults = choose(axes, metrics, x, y, color)
    how = list(dict.fromkeys(row.protocols[m] for row in rows for m in metrics if m in row.protocols))
    oracles, broken = Oracles(), list(found.broken)
    points = max(16, min(150, CURVES // (POINT * (len(curves.METRICS) + 3) * max(1, len(rows)))))
    with ThreadPoolExecutor(1) as other:  # pictures take as long as all else, and another core
        drawing = other.submit(thumbnails, [row.run.folder for row in ranked(rows, defaults["y"])], PICTURES)
        listed = []
        for row in rows:
            one, wrong = entry(row, metrics, how, oracles, points)
            listed.append(one | {"axes": {a["key"]: _of(row, a) for a in axes}})
            broken += wrong
        pictures, torn = drawing.result()
    for one, row in zip(listed, rows, strict=True):
        one["pictures"] = pictures.get(row.run.folder, {})
    ids = [one["id"] for one in listed]
    for one in listed:  # a run that was moved aside has the fingerprint of the one that took its place
        one["id"] = one["id"] if ids.count(one["id"]) == 1 else one["folder"]
    by_folder = {one["folder"]: one["id"] for one in listed}
    return {
        "title": f"{found.outputs.resolve().name}: {len(rows)} runs",
        "outputs": str(found.outputs),
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "version": version("vae-lab"),
        "defaults": defaults,
        "axes": axes,
        "metrics": [measure(metric) for metric in metrics],
        "t975": quantiles(60),
        "protocols": [{"id": i, "text": str(p), "facts": _facts(p)} for i, p in enumerate(how)],
        "runs": listed,
        "oracles": references(rows, oracles, by_folder),
        "broken": [{"folder": folder.name, "why": why} for folder, why in broken + torn],
        "size": size(rows),
        "swept": swept(rows, axes),
    }


def entry(
    row: Row, metrics: Sequence[str], how: Sequence[Protocol], oracles: Oracles, points: int
) -> tuple[dict[str, Any], list[Broken]]:
    """One run, and what of its folder could not be read."""
    run, known, wrong = row.run, row.run.record, []
    try:
        drawn = curves.curves(run.folder, points)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        drawn = None
        wrong.append(Broken(run.folder, f"{HISTORY} cannot be read ({reason(error)}); the run is here without curves"))
    its, state = units(row, oracles), run.facts["state"]
    config = {key: value for key, value in run.config.items() if not aside(key)}
    return {
        "id": str(known.get("fingerprint") or run.folder.name),
        "name": row.name,
        "folder": run.folder.name,
        "state": state,
        "error": None if known.get("error") is None else str(known["error"]),
        "log": tail(run.folder, 10) if state in ("failed", "partial") else [],
        "command": catalogue.command(known),
        "started": None if known.get("started") is None else str(known["started"]),
        "seconds": _seconds(row),
        "config": {key: scalar(value) for key, value in config.items()},
        "results": {m: _round(row.results[m]) for m in metrics if m in row.results},
        "errors": {m: _round(row.errors[m]) for m in metrics if m in row.errors},
        "protocol": {m: how.index(row.protocols[m]) for m in metrics if m in row.protocols},
        "distortion": _round(oracle.distortion(row)),
        "verdict": None if its.verdict is None else its.verdict._asdict(),
        "kl_dims": None if its.kl is None else [_round(value) for value in its.kl],
        "active": its.active,
        "predicted": its.predicted,
        "aggregate": None if its.aggregate is None else {"text": its.aggregate},
        "curves": None if drawn is None else _compact(drawn),
    }, wrong


def axis(rows: Sequence[Row], key: str) -> dict[str, Any]:
    """A key in which runs differ, and its values; `log`: they are spread more evenly by their logarithms."""
    present = [row.run.config[key] for row in rows if key in row.run.config]
    plain = all(number(value) is not None for value in present)
    values: list[Any] = sorted({value if plain else short(value) for value in present})
    return {"key": key, "values": values, "number": plain, "log": plain and logarithmic(values), "seed": key == SEED}


def logarithmic(values: Sequence[float]) -> bool:
    """Whether ascending values are of different magnitudes: their ratios vary less than their differences do."""
    if len(values) < 2 or values[0] <= 0:
        return False
    if len(values) == 2:
        return values[1] / values[0] >= 4

    def uneven(gaps: list[float]) -> float:
        return max(gaps) / min(gaps)

    return uneven([math.log(b / a) for a, b in pairwise(values)]) < uneven([b - a for a, b in pairwise(values)])


def choose(
    axes: Sequence[dict[str, Any]], metrics: Sequence[str], x: str | None, y: str | None, color: str | None
) -> dict[str, str | None]:
    """The keys and the metric that the charts begin with: those asked for, else the most telling."""
    keys = [a["key"] for a in axes]
    for name, value in (("x", x), ("color", color)):
        if value is not None and value not in keys:
            there = ", ".join(keys) or "none"
            raise ValueError(
                f"{name} must be a key in which these runs differ ({there}), got {value!r}{closest(value, keys)}"
            )
    if y is not None and y not in metrics:
        raise ValueError(f"y must be a metric that one of these runs has, got {y!r}{_near(y, metrics)}")
    free = [a for a in axes if not a["seed"]]
    telling = [a["key"] for a in sorted(free, key=lambda a: (not a["number"], -len(a["values"])))]
    x = x or next((key for key in telling if key != color), None)
    return {"x": x, "y": y or next(iter(metrics), None), "color": color or next((k for k in telling if k != x), None)}


def references(rows: Sequence[Row], oracles: Oracles, ids: dict[str, str]) -> list[dict[str, Any]]:
    """The water-filling curve of each distinct data, or why there is none."""
    found = []
    for label, some in oracle.groups(rows).items():
        fits = [row for row in some if oracle.refusal(row.run) is None]
        its = [ids[row.run.folder.name] for row in fits or some]
        one: dict[str, Any] = {"label": label, "runs": its, "note": None} | {name: [] for name in oracle.Curve._fields}
        if not fits:
            one["note"] = oracle.refusal(some[0].run)
        elif (ppca := oracles.of(fits[0].run)) is None:
            one["note"] = oracles.notes[label]
        else:
            try:
                drawn = oracle.curve(ppca, min(oracle.water(row.run) for row in fits) / 3)
                one |= {name: [_round(v) for v in values] for name, values in drawn._asdict().items()}
            except ValueError as error:
                one["note"] = reason(error)
        found.append(one)
    return found


def size(rows: Sequence[Row]) -> dict[str, Any]:
    """How many runs are in each state, and the seconds that all took together."""
    states = [row.run.facts["state"] for row in rows]
    counts = {state: states.count(state) for state in ("finished", "failed", "partial", "running")}
    return counts | {"seconds": round(math.fsum(_seconds(row) or 0.0 for row in rows), 3)}


def swept(rows: Sequence[Row], axes: Sequence[dict[str, Any]]) -> str:
    """ "12 d × s2 cells, 2 seeds each"."""
    if not rows:
        return "no runs"
    keys = [a["key"] for a in axes if not a["seed"]]
    cells: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        cell = tuple(short(row.run.config.get(key, "")) for key in keys)
        cells.setdefault(cell, set()).add(short(row.run.config.get(SEED, "")))
    last = [key.rpartition(".")[2] for key in keys]
    names = [key if last.count(name) > 1 else name for key, name in zip(keys, last, strict=True)]
    over = " × ".join(names) + " " if 0 < len(names) <= 4 else ""
    counts = sorted({len(seeds) for seeds in cells.values()})
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    each = " each" * (len(cells) > 1)
    return f"{len(cells)} {over}cell{'s' * (len(cells) > 1)}, {many} seed{'s' * (counts[-1] > 1)}{each}"


def quantiles(most: int) -> list[float]:
    """Student's 97.5 % quantile for 1 to `most` degrees of freedom."""
    from scipy.stats import t

    return [round(float(value), 6) for value in t.ppf(0.975, range(1, most + 1))]


def aside(key: str) -> bool:
    """Whether a key is no part of what a run computes."""
    return any(key == name or key.startswith(f"{name}.") for name in identity.ASIDE)


def scalar(value: object) -> object:
    """A configured value for JSON: numbers that it has as they are, all else as it is typed."""
    if isinstance(value, bool) or value is None:
        return value
    return value if number(value) is not None else short(value)


def _of(row: Row, axis: dict[str, Any]) -> object:
    if axis["key"] not in row.run.config:
        return None
    value = row.run.config[axis["key"]]
    return value if axis["number"] else short(value)


def _seconds(row: Row) -> float | None:
    return number(row.run.record.get("seconds"))


def _facts(protocol: Protocol) -> dict[str, Any]:
    return {name: value for name, value in vars(protocol).items() if value is not None}


def _near(metric: str, metrics: Sequence[str]) -> str:
    return closest(metric, metrics) or f"; there are {', '.join(metrics) or 'none'}"


def _compact(drawn: curves.Curves) -> dict[str, Any]:
    def some(values: list[Any] | None) -> list[float | None] | None:
        return None if values is None else [_round(value, 6) for value in values]

    values = {metric: some(column) for metric, column in drawn.values.items()}
    return {name: some(getattr(drawn, name)) for name in ("epoch", "examples", "seconds")} | {"values": values}


def _round(value: float | None, digits: int = 9) -> float | None:
    """To nine digits, which float32 has no more of; what is not finite is nothing."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
