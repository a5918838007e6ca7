"""Means over seeds and differences between settings, of numbers that may be compared."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from vae_lab.checks import closest
from vae_lab.report import protocols
from vae_lab.report.rows import Row
from vae_lab.runs import catalogue
from vae_lab.runs.catalogue import short

SEED = "seed"


class Mean(NamedTuple):
    """A mean over n runs, with the standard error that they show (n - 1 in the variance); one run shows none."""

    mean: float
    error: float | None
    n: int


class Paired(NamedTuple):
    """The mean of n differences b - a, with a 95 % interval by Student's t; one difference has none."""

    difference: float
    low: float | None
    high: float | None
    n: int


def mean(values: Sequence[float]) -> Mean:
    """Of at least one value."""
    n = len(values)
    middle = math.fsum(values) / n
    if n < 2:
        return Mean(middle, None, n)
    return Mean(middle, math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1) / n), n)


def t975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def paired(a: Mapping[Hashable, float], b: Mapping[Hashable, float]) -> Paired:
    """b - a over the keys that both have: seeds, say, that share the initial weights and the order of the data.

    Raises:
        ValueError: if they share none.
    """
    common = [key for key in a if key in b]
    if not common:
        raise ValueError("a and b must share seeds; they share none")
    middle, error, n = mean([b[key] - a[key] for key in common])
    if error is None:
        return Paired(middle, None, None, n)
    half = t975(n - 1) * error
    return Paired(middle, middle - half, middle + half, n)


def compare(rows: Sequence[Row], metric: str, key: str, a: object, b: object) -> Paired:
    """What `key`=b does to `metric`, against `key`=a: over the pairs of runs alike in all else, seeds included.

        rows = vae_lab.report.collect("outputs/", "data=digits d=8").rows
        compare(rows, "test/elbo", "objective.V", 1, 10)

    Raises:
        ValueError: for a metric or key that no run has, numbers that cannot be compared, or if there is no pair.
    """
    having = _having(rows, metric)
    if key not in (keys := {key for row in rows for key in row.run.config}):
        raise ValueError(f"{key}: no run has this key{closest(key, keys)}")
    # an option's own keys, as those of likelihood=laplace, come and go with it
    others = [k for k in catalogue.differences([row.run for row in having]) if not f"{k}.".startswith(f"{key}.")]
    sides: list[dict[Hashable, float]] = []
    told: dict[str, protocols.Protocol] = {}
    for value in (a, b):
        side = [row for row in having if short(row.run.config.get(key, "")) == short(value)]
        told |= {f"{key}={short(value)} ({row.run.folder.name})": row.protocols[metric] for row in side}
        sides.append({_setting(row, others): _value(row, metric) for row in side})
        if len(sides[-1]) < len(side):
            raise ValueError(
                f"{key}={short(value)}: some of these runs differ in nothing but {key}.*; choose among them"
            )
    protocols.comparable(told)
    if not set(sides[0]) & set(sides[1]):
        raise ValueError(f"{key}: no two runs with {short(a)} and {short(b)} are alike in {', '.join(others) or 'all'}")
    return paired(*sides)


def means(rows: Sequence[Row], metric: str, keys: Iterable[str]) -> dict[tuple[str, ...], Mean]:
    """The mean of `metric` over the runs of each setting of `keys`; over seeds, where these are all other keys.

    Raises:
        ValueError: for a metric that no run has, or numbers that cannot be compared.
    """
    having, keys = _having(rows, metric), list(keys)
    protocols.comparable({row.run.folder.name: row.protocols[metric] for row in having})
    settings: dict[tuple[str, ...], list[float]] = {}
    for row in having:
        settings.setdefault(_setting(row, keys), []).append(_value(row, metric))
    return {setting: mean(values) for setting, values in settings.items()}


def _having(rows: Sequence[Row], metric: str) -> list[Row]:
    having = [row for row in rows if row.results.get(metric) is not None]
    if not having:
        known = {m for row in rows for m in row.results}
        raise ValueError(f"{metric}: no run has this metric{closest(metric, known)}")
    return having


def _setting(row: Row, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(short(row.run.config.get(key, "")) for key in keys)


def _value(row: Row, metric: str) -> float:
    value = row.results[metric]
    assert value is not None
    return value
