"""p(z), the priors."""

from typing import final

import torch
from torch import Tensor

from vae_lab import distributions
from vae_lab.checks import whole
from vae_lab.interfaces import Encoder, Prior


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
