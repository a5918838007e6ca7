"""p(x | z) given eta = f(z), each with its full normaliser, so that scores at different s2 stand on one axis."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from vae_lab.checks import number, wholes
from vae_lab.distributions import IsotropicNormal, ProductBernoulli
from vae_lab.interfaces import Likelihood


@final
class Gaussian(Likelihood):
    """N(x | eta, s2 I), as in (8).

    Args:
        shape: of one datum
        s2: the variance, > 0, the same for every value
    """

    support = constraints.real
    s2: Tensor

    def __init__(self, shape: Sequence[int], s2: float) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape))
        self.register_buffer("s2", torch.tensor(number("s2", s2, above=0)))

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> IsotropicNormal:
        return IsotropicNormal(eta, self.s2, len(self.shape))


@final
class Bernoulli(Likelihood):
    """Bernoulli(x | sigmoid(eta)), one for each value (KW13, appendix C.1). x may be grey: log p is linear in it.

    Args:
        shape: of one datum
    """

    support = constraints.unit_interval

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape))

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> ProductBernoulli:
        return ProductBernoulli(eta, len(self.shape))
