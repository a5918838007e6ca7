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
    """Consecutive batches of a pass over the data, which are gathered when they are asked for. It is nothing that
    Lightning would search for tensors, which takes longer than a step of a small model.

    Args:
        rows: the data that the batches are chosen from. They may be all there are, and every run's: nobody writes there
        size: of each batch but the last, which may have fewer
        chosen: which of the rows are the batches', one batch behind another; None: all, as they lie
    """

    __slots__ = ("chosen", "rows", "size")

    def __init__(self, rows: Batch, size: int, chosen: Int[Tensor, " n"] | None = None) -> None:
        self.rows, self.size, self.chosen = rows, size, chosen

    @property
    def n(self) -> int:
        """Data in all batches."""
        return len(self.rows.x if self.chosen is None else self.chosen)

    def __len__(self) -> int:
        return math.ceil(self.n / self.size)

    def sizes(self) -> list[int]:
        """Data in each batch."""
        full, rest = divmod(self.n, self.size)
        return [self.size] * full + [rest] * (rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        if len(self):  # `split` makes one part of nothing
            yield from map(Batch, *(v.split(self.size) for v in self.gathered() if v is not None))

    def gathered(self) -> Batch:
        """The data of all batches."""
        if self.chosen is None:
            return self.rows
        x, index, label = (None if v is None else v.index_select(0, self.chosen) for v in self.rows)
        assert x is not None and index is not None
        return Batch(x, index, label)

    def parts(self, k: int) -> Iterator["Block"]:
        """The same, k batches at a time, and the rest at the end."""
        for first in range(0, len(self), k):
            yield self.between(first, first + k)

    def at(self, k: int) -> tuple["Block", "Block"]:
        """The first k batches, and the rest."""
        return self.between(0, k), self.between(k, len(self))

    def between(self, first: int, end: int) -> "Block":
        """Its batches first .. end - 1."""
        part = slice(first * self.size, end * self.size)
        if self.chosen is not None:
            return Block(self.rows, self.size, self.chosen[part])
        x, index, label = self.rows
        return Block(Batch(x[part], index[part], None if label is None else label[part]), self.size)


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
