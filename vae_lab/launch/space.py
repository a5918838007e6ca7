"""What a sweep's overrides leave open, in Hydra's own syntax: `d=choice(2,8)`, `d=2,8`, `d=range(1,9)`, intervals."""

from collections.abc import Sequence
from typing import NamedTuple

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from vae_lab.checks import closest

Value = bool | int | float | str


class Choice(NamedTuple):
    """One of some values: `2,8`, `choice(2,8)`, `glob(*)`."""

    key: str  # as typed, so with its + where it has one
    values: list[Value]  # numbers and truth values; all else as it would be typed


class Steps(NamedTuple):
    """low, low + step, ..., high, which is one of them: `range(1,9)`, `int(interval(1,8))`."""

    key: str
    low: int | float
    high: int | float
    step: int | float
    log: bool


class Interval(NamedTuple):
    """Any number between low and high: `interval(0,1)`, `tag(log,interval(1e-3,1))`."""

    key: str
    low: float
    high: float
    log: bool


Axis = Choice | Steps | Interval


def split(overrides: Sequence[Override]) -> tuple[list[Axis], list[str]]:
    """The axes of a sweep, and the overrides that all of its cells share, as typed.

    Raises:
        ValueError: for an axis that holds no value, or a tag that means nothing.
    """
    axes = [axis(o) for o in overrides if o.is_sweep_override()]
    keys = [a.key for a in axes]
    if repeated := sorted({k for k in keys if keys.count(k) > 1}):
        raise ValueError(f"{repeated[0]} is given twice")
    return axes, [str(o.input_line) for o in overrides if not o.is_sweep_override()]


def axis(override: Override) -> Axis:
    """What may be chosen by `override`, a sweep's; raises ValueError as `split` does."""
    key, sweep = override.get_key_element(), override.value()
    tags = sorted(getattr(sweep, "tags", ()))
    if strange := [tag for tag in tags if tag != "log"]:
        raise ValueError(f"{key} must have no tag but log, got {strange[0]}{closest(strange[0], ['log'])}")
    log = bool(tags)
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None and sweep.end is not None
        found = _interval(key, sweep.start, sweep.end, log)
    elif isinstance(sweep, RangeSweep):
        values = sorted(sweep.range())
        if not values:
            raise ValueError(f"{key} must have a value to choose, got {override.input_line}")
        found = Steps(key, values[0], values[-1], abs(sweep.step), log)
    else:
        values = list(override.sweep_iterator())
        if not values:
            raise ValueError(f"{key} must have a value to choose, got {override.input_line}")
        if log:
            raise ValueError(f"{key} must be an interval, or a range, to be tagged log, got {override.input_line}")
        plain = not isinstance(sweep, ChoiceSweep)  # a glob's options
        return Choice(key, [v if plain or isinstance(v, bool | int | float) else _text(v) for v in values])
    if log and found.low <= 0:
        raise ValueError(f"{key} must be above 0 to be tagged log, got {override.input_line}")
    if log and isinstance(found, Steps) and found.step != 1:
        raise ValueError(f"{key} must go in steps of 1 to be tagged log, got {override.input_line}")
    return found


def _interval(key: str, low: float, high: float, log: bool) -> Steps | Interval:
    if not low < high:
        raise ValueError(f"{key} must be an interval from a lower to a higher number, got {low:g} and {high:g}")
    if isinstance(low, int) and isinstance(high, int):
        return Steps(key, low, high, 1, log)
    return Interval(key, low, high, log)


def _text(value: object) -> str:
    return Override._get_value_element_as_str(value)  # type: ignore[arg-type]


def typed(value: Value) -> str:
    """A value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def first(axis: Axis) -> Value:
    """The first of an axis's values, or the lowest."""
    return axis.values[0] if isinstance(axis, Choice) else axis.low


def overrides(fixed: Sequence[str], chosen: dict[str, Value]) -> list[str]:
    """What is typed for the cell where the axes have the values `chosen`."""
    return [*fixed, *(f"{key}={typed(value)}" for key, value in chosen.items())]
