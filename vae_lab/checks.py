"""Checks of constructor arguments.

Every message begins with the argument's name, so that whoever knows where the argument came from (a config key,
say) can put that before it: `s2 must be ...` becomes `likelihood.s2 must be ...`.
"""

import math
from collections.abc import Collection, Iterable
from numbers import Real


def whole(name: str, value: object, least: int = 1) -> int:
    """`value` as an integer >= `least`; raises ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value


def number(
    name: str, value: object, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> float:
    """`value` as a finite float > `above`, >= `least` and <= `most`; raises ValueError otherwise."""
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not (float(value) > above and least <= float(value) <= most):  # type: ignore[arg-type]
        limits = [f" {sign} {v:g}" for sign, v in ((">", above), (">=", least), ("<=", most)) if math.isfinite(v)]
        raise ValueError(f"{name} must be a finite number{' and'.join(limits)}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def flag(name: str, value: object) -> bool:
    """`value` as a bool; raises ValueError otherwise."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def wholes(name: str, value: object) -> list[int]:
    """`value` as a list of integers >= 1 (it may be empty); raises ValueError otherwise."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of whole numbers >= 1, got {value!r}")
    items = list(value)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int) or item < 1:
            raise ValueError(f"{name} must be a list of whole numbers >= 1, got {items!r}")
    return items


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    """`value` as one of `allowed`; raises ValueError, with the closest name, otherwise."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{closest(str(value), allowed)}")
    return value


def closest(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` where one of `allowed` is close to `word`, else nothing."""
    import difflib  # only where something is wrong

    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
