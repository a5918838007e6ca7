"""q(z | x), the encoders of (8)."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from vae_lab import networks
from vae_lab.checks import whole, wholes
from vae_lab.distributions import DiagonalNormal
from vae_lab.interfaces import Batch, Encoder
from vae_lab.networks import halvings, image_shape, mlp


def _diagonal_normal(h: Tensor) -> DiagonalNormal:
    """h [B, 2d] holds mu and log sigma side by side."""
    mu, log_sigma = h.chunk(2, -1)
    return DiagonalNormal(mu, log_sigma.exp())


@final
class Linear(Encoder):
    """mu = W x + b; one free sigma for all x. All that a linear decoder's exact posterior needs (probabilistic PCA).

    Args:
        shape: of one datum, any
        d: latent dimensions
    """

    def __init__(self, shape: Sequence[int], d: int) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.mu = nn.Linear(math.prod(self.shape), d)
        self.log_sigma = nn.Parameter(torch.zeros(d))

    def forward(self, batch: Batch) -> DiagonalNormal:
        mu = self.mu(batch.x.flatten(1))  # [B, d]
        return DiagonalNormal(mu, self.log_sigma.exp().expand_as(mu))


@final
class MLP(Encoder):
    """A perceptron with the given hidden widths, to mu and log sigma (KW13, appendix C).

    Args:
        shape: of one datum, any
        d: latent dimensions
        hidden: widths of the hidden layers, from x to z
        activation: a name from `networks.ACTIVATIONS`
    """

    def __init__(self, shape: Sequence[int], d: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.net = mlp([math.prod(self.shape), *wholes("hidden", hidden), 2 * d], activation)

    def forward(self, batch: Batch) -> DiagonalNormal:
        return _diagonal_normal(self.net(batch.x.flatten(1)))


@final
class Conv(Encoder):
    """3x3 convolutions of stride 2, then one linear layer to mu and log sigma. Images of any size.

    Args:
        shape: of one datum, [C, H, W]
        d: latent dimensions
        channels: of each convolution, from x to z
        activation: a name from `networks.ACTIVATIONS`
    """

    def __init__(self, shape: Sequence[int], d: int, channels: Sequence[int], activation: str) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        C, H, W = image_shape(self.shape, "encoder Conv")
        channels = wholes("channels", channels)
        layers: list[nn.Module] = []
        for c_in, c_out in zip([C, *channels], channels, strict=False):
            layers += [nn.Conv2d(c_in, c_out, kernel_size=3, stride=2, padding=1), networks.activation(activation)]
        h, w = halvings(H, len(channels))[-1], halvings(W, len(channels))[-1]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear([C, *channels][-1] * h * w, 2 * d))

    def forward(self, batch: Batch) -> DiagonalNormal:
        return _diagonal_normal(self.net(batch.x))
