"""What the parts are, and what passes between them.

Every concrete part is final and derives from exactly one of the abstract classes below. Shapes: B data, V samples,
d latent dimensions, `*shape` one datum, `*eta` what a decoder makes of one z. Parts with `classes` > 0 are conditional:
they are given the label too (Doersch 2016, section 3).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, final

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint


class Batch(NamedTuple):
    """B data: their values, their places in the training set (6), and their labels where the data has them."""

    x: Float[Tensor, "B *shape"]
    index: Int[Tensor, " B"]  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    label: Int[Tensor, " B"] | None = None


ROOM = 2**24
"""The most bytes that the data of a block take, and the noise that is drawn at once, if they are not of one batch."""


@final
class Block:
    """Consecutive batches of a pass over the data, one behind another in the same tensors. It is nothing that Lightning
    would search for tensors, which takes longer than a step of a small model.

    Args:
        rows: the data of all
        size: of each batch but the last, which may have fewer
    """

    __slots__ = ("rows", "size")

    def __init__(self, rows: Batch, size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return math.ceil(len(self.rows.x) / self.size)

    def __iter__(self) -> Iterator[Batch]:
        if len(self):  # `split` makes one part of nothing
            yield from map(Batch, *(v.split(self.size) for v in self.rows if v is not None))

    def at(self, k: int) -> tuple["Block", "Block"]:
        """The first k batches, and the rest."""
        n = k * self.size
        x, index, label = self.rows
        first = Batch(x[:n], index[:n], None if label is None else label[:n])
        return Block(first, self.size), Block(Batch(x[n:], index[n:], None if label is None else label[n:]), self.size)


class Terms(NamedTuple):
    """The parts of an objective, per datum and in nats. `elbo`, `rec`, `kl` mean the same under every objective."""

    loss: Float[Tensor, " B"]
    elbo: Float[Tensor, " B"]
    rec: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]


class Posterior(nn.Module, ABC):
    """The kind of q(z | x): `size` numbers a datum -> a distribution of batch shape [B] and event shape [d]."""

    d: int
    size: int

    @abstractmethod
    def forward(self, h: Float[Tensor, "*B size"]) -> Distribution: ...


class Encoder(nn.Module, ABC):
    """q(z | x): a batch -> a distribution of batch shape [B] and event shape [d], as in (8)."""

    d: int
    shape: tuple[int, ...]
    classes: int = 0
    amortised: bool = True
    """False: every training datum has parameters of its own (6), found by its index and with sparse gradients; new
    data have none until they are refined."""
    lr: float
    """Where not amortised: of the Adam that fits those parameters, in training and to new data."""
    steps: int
    """Where not amortised: how many it makes for new data."""

    @abstractmethod
    def forward(self, batch: Batch) -> Distribution: ...


class Decoder(nn.Module, ABC):
    """f: z [..., d] -> eta, the parameter of p(x | z), as in (8): [..., *shape], or [..., outputs, *shape] where
    p(x | z) takes several numbers for each value of x."""

    d: int
    shape: tuple[int, ...]
    outputs: int = 1
    classes: int = 0

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "*lead d"], label: Int[Tensor, "*some"] | None = None
    ) -> Float[Tensor, "*lead_eta"]: ...


class Likelihood(nn.Module, ABC):
    """p(x | z): a decoder's eta -> a distribution whose `log_prob(x)` is [...], with its full normaliser."""

    shape: tuple[int, ...]
    outputs: int = 1
    """How many numbers of eta belong to each value of x."""
    support: Constraint
    """Where x may lie; data outside it are refused before training."""
    grid: Constraint | None = None
    """Where x has a probability; None: p(x | z) is a density."""

    @abstractmethod
    def forward(self, eta: Float[Tensor, "*lead_eta"]) -> Distribution: ...


class Prior(nn.Module, ABC):
    """p(z): a distribution of event shape [d]. It may be made from the encoder."""

    d: int

    @abstractmethod
    def forward(self, encoder: Encoder) -> Distribution: ...
