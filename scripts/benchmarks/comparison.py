"""Contenders measured side by side: their segments take turns, so that what else the machine does meets them all."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.machine import Noise, Watch

ENOUGH = 5  # segments
SPREAD = 0.15  # of the first contender's middle half, over its median: above it, the machine was not quiet
OTHERS = 0.1  # cores that other processes took meanwhile: likewise
LOAD = 0.3  # processes that waited to run before the benchmark began: likewise
APART = 5.0  # standard errors between two losses: one pair in a thousand, with five segments each


class Taken(NamedTuple):
    """What a segment came to: a figure in the comparison's unit, and minus the ELBO of the model that was trained."""

    value: float
    loss: float | None = None
    also: Mapping[str, float] = MappingProxyType({})  # further figures of the same segment, by the names they go under


class Goal(NamedTuple):
    """What the first contender's figure over the second's has to be: at least, or `most`."""

    of: str
    to: str
    must: float
    aim: float | None = None
    most: bool = False

    def met(self, ratio: float) -> bool:
        """Whether it is reached."""
        return ratio <= self.must if self.most else ratio >= self.must


class Ratio(NamedTuple):
    """One contender's figure over another's in the same turn: the median over the turns, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


class About(NamedTuple):
    """What is compared."""

    name: str
    title: str
    unit: str  # of the figures: "steps/s", where more is better, or "s"
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()
    flops: int = 0  # of the matrix products of a step
    axis: str | None = None  # what is varied over several comparisons ...
    at: float = 0.0  # ... and its value in this one


class Comparison(NamedTuple):
    """The figures of each contender, turn by turn; the first is what the others are compared with."""

    about: About
    segments: Mapping[str, Sequence[float]]
    losses: Mapping[str, Sequence[float]]
    noise: Noise | None = None

    @property
    def reference(self) -> str:
        """The first contender."""
        return next(iter(self.segments))

    def median(self, name: str) -> float:
        """A contender's figure."""
        return statistics.median(self.segments[name])

    def spread(self, name: str) -> float:
        """How far the middle half of a contender's figures reaches, over their median."""
        _, low, high = quartiles(self.segments[name])
        return (high - low) / self.median(name)

    def ratio(self, of: str, to: str) -> Ratio:
        """The first contender's figure over the second's."""
        return quartiles([a / b for a, b in zip(self.segments[of], self.segments[to], strict=True)])

    def measured(self) -> list[tuple[Goal, Ratio]]:
        """The goals of which both contenders were there."""
        return [(g, self.ratio(g.of, g.to)) for g in self.about.goals if {g.of, g.to} <= self.segments.keys()]

    def doubts(self) -> list[str]:
        """Why these figures are not to be trusted; nothing where they are."""
        first, n = self.reference, len(self.segments[self.reference])
        found = [] if n >= ENOUGH else [f"{n} segments, of at least {ENOUGH}"]
        if self.spread(first) > SPREAD:
            found.append(f"the middle half of the segments of {first} spreads by {self.spread(first):.0%}")
        if self.noise is not None and self.noise.others > OTHERS:
            found.append(f"other processes took {self.noise.others:.1f} of {self.noise.cores} cores")
        if self.noise is not None and self.noise.load > LOAD:
            found.append(f"the load average was {self.noise.load:.1f} before it began")
        return found + [f"{name} does not come to the loss of {first}" for name in self.strays()]

    def strays(self) -> list[str]:
        """The contenders that come to another loss than the first, after the same steps: their work is not the same."""
        if self.reference not in self.losses:
            return []
        a = self.losses[self.reference]
        return [name for name, b in self.losses.items() if min(len(a), len(b)) > 2 and apart(a, b)]


def quartiles(values: Sequence[float]) -> Ratio:
    """The median, and the quartiles; those of a single value are the value itself."""
    if len(values) == 1:
        return Ratio(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, low, high)


def apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two means differ by more than chance."""
    error = (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5
    return abs(statistics.fmean(a) - statistics.fmean(b)) > APART * error


def compare(
    about: About, contenders: Mapping[str, Callable[[], Taken]], turns: int, warm_up: bool = True
) -> Comparison:
    """Measures contenders, every second turn in the opposite order.

    Args:
        turns: segments of each contender
        warm_up: whether a turn comes before that does not count
    """
    segments: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, list[float]] = {}
    names = list(contenders)
    with Watch() as watch:
        for turn in range(-1 if warm_up else 0, turns):
            for name in names if turn % 2 else names[::-1]:
                taken = contenders[name]()
                if turn >= 0:
                    for key, value in {name: taken.value, **taken.also}.items():
                        segments.setdefault(key, []).append(value)
                    if taken.loss is not None:
                        losses.setdefault(name, []).append(taken.loss)
    return Comparison(about, segments, losses, watch.noise)


def to_json(found: Comparison) -> dict[str, Any]:
    """For a file; with what is computed from the figures, for whoever reads it by other means."""
    medians = {name: found.median(name) for name in found.segments}
    ratios = {name: found.ratio(name, found.reference) for name in found.segments}
    more = {"about": found.about._asdict(), "medians": medians, "ratios": ratios, "doubts": found.doubts()}
    return found._asdict() | more


def from_json(content: Mapping[str, Any]) -> Comparison:
    """What `to_json` has written."""
    about = content["about"] | {"goals": [Goal(*goal) for goal in content["about"]["goals"]]}
    noise = content["noise"] and Noise(*content["noise"])
    return Comparison(About(**about), content["segments"], content["losses"], noise)
