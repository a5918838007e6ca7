"""What the parts are, and what passes between them.

Every concrete part is final and derives from exactly one of the abstract classes below. Shapes: B data, V samples,
d latent dimensions, `*shape` one datum.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint


class Batch(NamedTuple):
    """B data: their values, their places in the training set (6), and their labels where the data has them."""

    x: Float[Tensor, "B *shape"]
    index: Int[Tensor, " B"]  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    label: Int[Tensor, " B"] | None = None


class Terms(NamedTuple):
    """The parts of an objective, per datum and in nats. `elbo`, `rec`, `kl` mean the same under every objective."""

    loss: Float[Tensor, " B"]
    elbo: Float[Tensor, " B"]
    rec: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]


class Encoder(nn.Module, ABC):
    """q(z | x): a batch -> a distribution of batch shape [B] and event shape [d], as in (8)."""

    d: int
    shape: tuple[int, ...]

    @abstractmethod
    def forward(self, batch: Batch) -> Distribution: ...


class Decoder(nn.Module, ABC):
    """f: z [..., d] -> eta [..., *shape], the parameter of p(x | z), as in (8)."""

    d: int
    shape: tuple[int, ...]

    @abstractmethod
    def forward(self, z: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead_shape"]: ...


class Likelihood(nn.Module, ABC):
    """p(x | z): eta [..., *shape] -> a distribution whose `log_prob(x)` is [...], with its full normaliser."""

    shape: tuple[int, ...]
    support: Constraint
    """Where x may lie; data outside it are refused before training."""

    @abstractmethod
    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> Distribution: ...


class Prior(nn.Module, ABC):
    """p(z): a distribution of event shape [d]."""

    d: int

    @abstractmethod
    def forward(self) -> Distribution: ...
