"""Exact statistics over data, whatever the batch sizes or the number of processes."""

import math
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

# Apple's GPU has no float64
_EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


class Statistics(NamedTuple):
    """Of k values over n data: n, their means, their variances (1/n), and the standard errors of the means."""

    n: Float[Tensor, ""]
    mean: Float[Tensor, " k"]
    variance: Float[Tensor, " k"]
    error: Float[Tensor, " k"]


@final
class Moments(Metric):
    """The first two moments of k values a datum.

    Args:
        k: how many values each datum has
    """

    full_state_update = False
    n: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.add_state("n", torch.zeros((), dtype=_EXACT), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(k, dtype=_EXACT), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(k, dtype=_EXACT), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, "k B"]) -> None:
        """Takes B data in; B may be 0."""
        values = values.to(_EXACT)
        # in place: to set an attribute of a metric takes longer
        self.n.add_(values.shape[1])
        self.total.add_(values.sum(1))
        self.squares.add_((values**2).sum(1))

    def compute(self) -> Statistics:
        """Of all data so far, on all processes."""
        mean = self.total / self.n
        variance = (self.squares / self.n - mean**2).clamp(min=0)
        return Statistics(self.n, mean, variance, (variance / self.n).sqrt())

    def sums(self) -> dict[str, Tensor]:
        """n, total and squares, over all processes: what a checkpoint keeps."""
        with self.sync_context():
            return {name: getattr(self, name).clone() for name in ("n", "total", "squares")}

    def resume(self, sums: dict[str, Tensor]) -> None:
        """Goes on from those sums."""
        for name, value in sums.items():
            getattr(self, name).copy_(value)


def bits_per_dim(log_p: Tensor, D: int, levels: int) -> Tensor:
    """Nats per datum as bits for each of its D values: what coding them would take.

    Args:
        log_p: log p(x), or a bound of it
        D: values of one datum
        levels: 1 where p(x) is a probability; where it is the density of dequantised data, (pixel + u) / levels, their
            number of levels: the density's mean over a cell of volume levels^-D is the pixels' probability
    """
    return (D * math.log(levels) - log_p) / (D * math.log(2))
