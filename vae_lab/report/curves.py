"""A run's history as curves, with few points and every spike."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vae_lab.runs.catalogue import number
from vae_lab.runs.files import HISTORY, rows

METRICS = [f"{split}/{term}" for term in ("elbo", "kl", "rec") for split in ("val", "train")]


class Curves(NamedTuple):
    """Values against how far training had come; all lists are of one length, with None where nothing was logged.

    Attributes:
        epoch: epochs completed
        examples: seen in training; None: unknown
        seconds: of training, without validation; None: unknown
        values: by metric
    """

    epoch: list[float]
    examples: list[float] | None
    seconds: list[float] | None
    values: dict[str, list[float | None]]


def curves(folder: Path, points: int = 150) -> Curves | None:
    """Of the run in `folder`: at most `points`, or a few more where the metrics' extremes ask for them.

    Raises:
        ValueError, OSError: for a history that cannot be read.
    """
    found = full(rows(folder / HISTORY))
    if found is None:
        return None
    kept = thinned(list(found.values.values()), points)

    def some(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [values[i] for i in kept]

    values = {metric: [column[i] for i in kept] for metric, column in found.values.items()}
    return Curves([found.epoch[i] for i in kept], some(found.examples), some(found.seconds), values)


def full(history: Sequence[Mapping[str, Any]]) -> Curves | None:
    """All points of a history; None if there are none. Training is logged once at the end of each epoch."""
    merged: dict[int, dict[str, Any]] = {}
    for row in history:
        if any(metric in row for metric in METRICS):
            merged.setdefault(int(row["step"]), {}).update(row)
    steps = sorted(merged)
    ends = [step for step in steps if "train/elbo" in merged[step]]
    values = {metric: [number(merged[step].get(metric)) for step in steps] for metric in METRICS}
    values = {metric: column for metric, column in values.items() if any(v is not None for v in column)}
    if not values:
        return None
    if not ends:  # nothing tells how long an epoch is
        return Curves([float(i) for i in range(1, len(steps) + 1)], None, None, values)
    sizes = [_quotient(merged[step].get("train/elbo_total"), merged[step].get("train/elbo")) for step in ends]
    n = next((round(size) for size in sizes if size), None)  # (17)  elbo_total is n times the mean
    took = [_quotient(n, merged[step].get("train/images_per_second")) for step in ends]
    epoch = [_between(step, ends, [float(i) for i in range(len(ends) + 1)]) for step in steps]
    examples = None if n is None else [n * passed for passed in epoch]
    seconds = None
    if all(took):
        total = [0.0]
        for t in took:
            total.append(total[-1] + (t or 0.0))
        seconds = [_between(step, ends, total) for step in steps]
    return Curves(epoch, examples, seconds, values)


def thinned(columns: Sequence[Sequence[float | None]], points: int) -> list[int]:
    """Which points to keep: of each of so many equal stretches that about `points` remain, every column's smallest and
    largest value; and the first and the last of all."""
    n = len(columns[0])
    if n <= points:
        return list(range(n))
    buckets = max(1, points // 2)
    while True:
        kept = {0, n - 1}
        for b in range(buckets):
            inside = range(b * n // buckets, (b + 1) * n // buckets)
            for column in columns:
                there = [i for i in inside if column[i] is not None]
                if there:
                    kept |= {min(there, key=column.__getitem__), max(there, key=column.__getitem__)}  # type: ignore[arg-type]
        if len(kept) <= points or buckets == 1:
            return sorted(kept)
        buckets = max(1, min(buckets - 1, buckets * points // len(kept)))


def _quotient(a: object, b: object) -> float | None:
    above, below = number(a), number(b)
    return above / below if above is not None and below else None


def _between(step: int, ends: Sequence[int], at: Sequence[float]) -> float:
    """What had been reached at `step`, where at[k] had been when k epochs were over, at the step ends[k - 1]."""
    k = bisect_left(ends, step)
    if k == len(ends):
        return at[k]
    before = ends[k - 1] if k else 0
    return at[k] + (at[k + 1] - at[k]) * (step - before) / (ends[k] - before)
