"""Data whose values are levels 0, 1/(levels - 1), ..., 1: whether they are, and how many there are."""

from collections.abc import Iterable
from typing import final

from torch import Tensor
from torch.distributions.constraints import Constraint

MOST = 256
"""No greater number of levels is looked for."""


@final
class Levels(Constraint):
    """The values 0, 1/(levels - 1), ..., 1, up to float32's rounding of them."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is one of the levels."""
        last = self.levels - 1
        k = (value * last).round()
        return ((value * last - k).abs() <= last * 2**-21) & (k >= 0) & (k <= last)  # float32 rounds 1 by up to 2^-24

    def __repr__(self) -> str:
        last = self.levels - 1
        between = [] if last == 1 else [f"1/{last}"] if last == 2 else [f"1/{last}", "..."]
        return "{" + ", ".join(["0", *between, "1"]) + "}"


def count_levels(parts: Iterable[Tensor]) -> int | None:
    """The least number of levels, up to 256, on which all values of all tensors lie; None: on none."""
    fitting = list(range(2, MOST + 1))
    for x in parts:
        fitting = [n for n in fitting if Levels(n).check(x).all()]
        if not fitting:
            return None
    return fitting[0]
