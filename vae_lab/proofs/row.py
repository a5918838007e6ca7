"""One line of the proof sheet."""

from typing import NamedTuple

SIGMAS = 4.0
"""A sampled value may miss the exact one by this many standard errors; one in 16,000 would, by chance."""

ROUNDING = 1e-10
"""What float64 may leave of a difference that is exactly zero, values being of order 1 to 1000."""


class Row(NamedTuple):
    """A measured number, and what it has to be.

    `relation`: "=" within the tolerance; "<=" or ">=" but for the tolerance; "!=" by more than the tolerance, for what
    is wrong and must be seen to be.
    """

    what: str
    measured: float
    relation: str
    exact: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it is so; what is not finite never is."""
        difference = self.measured - self.exact
        return {
            "=": abs(difference) <= self.tolerance,
            "!=": self.tolerance < abs(difference) < float("inf"),
            "<=": -float("inf") < difference <= self.tolerance,
            ">=": -self.tolerance <= difference < float("inf"),
        }[self.relation]
