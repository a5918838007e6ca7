"""What kind of distribution q(z | x) is, given the numbers that an encoder computes from x."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.checks import whole, wholes
from vae_lab.distributions import DiagonalNormal, FullNormal, TransformedNormal
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


@final
class Full(Posterior):
    """N(mu, L L^T) with L lower triangular, from mu, L below its diagonal, and the logarithm of its diagonal.

    Args:
        d: latent dimensions
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.d = whole("d", d)
        self.size = d + d * (d + 1) // 2

    def forward(self, h: Float[Tensor, "*B size"]) -> FullNormal:
        mu, numbers = h[..., : self.d], h[..., self.d :]
        # laid out as a square, so that each number has one place on or below the diagonal
        square = torch.cat([numbers[..., self.d :], numbers.flip(-1)], -1).unflatten(-1, (self.d, self.d))
        return FullNormal(mu, square.tril(-1) + square.diagonal(dim1=-2, dim2=-1).exp().diag_embed())


@final
class Flow(Posterior):
    """z = mu + sigma * T^-1(eps), T a normalizing flow of affine couplings that depend on x, by zuko (Rezende &
    Mohamed 2015; RealNVP: Dinh et al. 2017). Its KL has no closed form. Needs `pip install 'vae-lab[flow]'`.

    Args:
        d: latent dimensions, at least 2: each coupling moves one half of them by the other
        transforms: couplings, one after another
        hidden: widths of the hidden layers of each
    Raises:
        ValueError: if zuko is not installed.
    """

    def __init__(self, d: int, transforms: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.d = whole("d", d)
        if d == 1:
            raise ValueError("d must be at least 2 for a flow, whose couplings move one half of z by the other, got 1")
        transforms, hidden = whole("transforms", transforms), wholes("hidden", hidden)
        try:
            from zuko.flows import MAF
        except ImportError:
            raise ValueError("posterior=flow needs the package zuko: pip install 'vae-lab[flow]'") from None
        self.size = 3 * d  # mu, log sigma, and as many numbers again for T, which is given them all
        # an autoregressive flow of two passes is one of couplings
        self.T = MAF(d, self.size, transforms, passes=2, hidden_features=hidden).transform

    def forward(self, h: Float[Tensor, "*B size"]) -> TransformedNormal:
        mu, log_sigma, _ = h.chunk(3, -1)
        return TransformedNormal(mu, log_sigma.exp(), h, self.T)
