"""p(z), the priors."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from vae_lab import distributions
from vae_lab.checks import whole, wholes
from vae_lab.distributions import DiagonalNormal
from vae_lab.interfaces import Batch, Encoder, Prior


@final
class StandardNormal(Prior):
    """N(0, I), as in (8).

    Args:
        d: latent dimensions
    """

    like: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.d = whole("d", d)
        self.register_buffer("like", torch.zeros(()), persistent=False)  # follows the model's device and dtype

    def forward(self, encoder: Encoder) -> distributions.StandardNormal:
        return distributions.StandardNormal(self.d, self.like)


@final
class Mixture(Prior):
    """sum_k w_k N(mu_k, diag(sigma_k^2)), all learned. The KL to it has no closed form.

    Args:
        d: latent dimensions
        components: how many normals
    """

    def __init__(self, d: int, components: int) -> None:
        super().__init__()
        self.d, K = whole("d", d), whole("components", components)
        self.logits = nn.Parameter(torch.zeros(K))
        self.mu, self.log_sigma = nn.Parameter(torch.randn(K, d)), nn.Parameter(torch.zeros(K, d))

    def forward(self, encoder: Encoder) -> distributions.Mixture:
        return distributions.Mixture(self.logits.log_softmax(-1), DiagonalNormal(self.mu, self.log_sigma.exp()))


@final
class Vamp(Prior):
    """1/K sum_k q(z | u_k), the encoder's posteriors of K pseudo-inputs u_k that are learned (Tomczak & Welling 2018).

    The KL to it has no closed form.

    Args:
        d: latent dimensions
        shape: of one datum, any
        components: K, the number of pseudo-inputs
    Raises:
        ValueError: when called with an encoder that has no posterior for an x of any kind: one that is conditional,
            or that looks a datum's posterior up.
    """

    def __init__(self, d: int, shape: Sequence[int], components: int) -> None:
        super().__init__()
        self.d, K = whole("d", d), whole("components", components)
        self.u = nn.Parameter(torch.rand(K, *wholes("shape", shape)))  # grey, as images are

    def forward(self, encoder: Encoder) -> distributions.Mixture:
        if encoder.classes:
            raise ValueError(f"classes must be 0 for the vamp prior: its inputs have no labels, got {encoder.classes}")
        if not encoder.amortised:
            name = type(encoder).__name__
            raise ValueError(f"encoder must compute q(z | x) from x alone for the vamp prior, got {name}")
        if encoder.shape != self.u.shape[1:]:
            shape = list(self.u.shape[1:])
            raise ValueError(f"shape must be the encoder's for the vamp prior, {list(encoder.shape)}, got {shape}")
        K = len(self.u)
        log_w = self.u.new_full((K,), -math.log(K))
        return distributions.Mixture(log_w, encoder(Batch(self.u, torch.arange(K, device=self.u.device))))
