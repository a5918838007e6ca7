"""What kind of distribution q(z | x) is, given the numbers that an encoder computes from x."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from vae_lab.checks import whole
from vae_lab.distributions import DiagonalNormal
from vae_lab.interfaces import Posterior


@final
class Diagonal(Posterior):
    """N(mu, diag(sigma^2)), as in (8), from mu and log sigma.

    Args:
        d: latent dimensions
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.d = whole("d", d)
        self.size = 2 * d

    def forward(self, h: Float[Tensor, "*B size"]) -> DiagonalNormal:
        mu, log_sigma = h.chunk(2, -1)
        return DiagonalNormal(mu, log_sigma.exp())
