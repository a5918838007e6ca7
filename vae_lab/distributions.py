"""The distributions of the note that torch has not, or has only in a slower form.

Each may be called under `torch.func.vmap`: nothing is validated, nothing is sampled inside.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, register_kl
from torch.nn.functional import binary_cross_entropy_with_logits


class DiagonalNormal(Distribution):
    """N(mu, diag(sigma^2)) over the last dimension, as in (8) and (10); sigma is a standard deviation.

    Args:
        mu: [..., d]
        sigma: [..., d], > 0
    """

    def __init__(self, mu: Float[Tensor, "*B d"], sigma: Float[Tensor, "*B d"]) -> None:
        self.mu, self.sigma = mu, sigma
        super().__init__(mu.shape[:-1], mu.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return self.sigma**2

    def log_prob(self, value: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
        """log N(value | mu, diag(sigma^2)), in nats: (10)."""
        eps = (value - self.mu) / self.sigma
        return -0.5 * (eps**2 + math.log(2 * math.pi)).sum(-1) - self.sigma.log().sum(-1)


class StandardNormal(Distribution):
    """N(0, I) over d dimensions: the prior of (8), with the density of (10).

    Args:
        like: any tensor on the wanted device and of the wanted dtype.
    """

    def __init__(self, d: int, like: Tensor) -> None:
        self.like = like
        super().__init__(torch.Size(), torch.Size([d]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.like.new_zeros(self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.like.new_ones(self.event_shape)

    def log_prob(self, value: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
        """log N(value | 0, I), in nats: (10)."""
        return -0.5 * (value**2 + math.log(2 * math.pi)).sum(-1)


class IsotropicNormal(Distribution):
    """N(mu, s2 I) over the last `event_dims` dimensions: p(x | z) of (8) with all its constants.

    Args:
        mu: [..., *shape]
        s2: the variance, a scalar > 0
    """

    def __init__(self, mu: Tensor, s2: Float[Tensor, ""], event_dims: int) -> None:
        self.mu, self.s2 = mu, s2
        lead = mu.ndim - event_dims
        super().__init__(mu.shape[:lead], mu.shape[lead:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return self.s2.expand_as(self.mu)

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(value | mu, s2 I) = -||value - mu||^2 / (2 s2) - D/2 log(2 pi s2), in nats: [...]."""
        D = self.event_shape.numel()
        sse = ((value - self.mu) ** 2).flatten(-len(self.event_shape)).sum(-1)
        return -0.5 * (sse / self.s2 + D * torch.log(2 * math.pi * self.s2))


class ProductBernoulli(Distribution):
    """Independent Bernoullis over the last `event_dims` dimensions, p(1) = sigmoid(logits).

    Args:
        logits: [..., *shape]
    """

    def __init__(self, logits: Tensor, event_dims: int) -> None:
        self.logits = logits
        lead = logits.ndim - event_dims
        super().__init__(logits.shape[:lead], logits.shape[lead:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """sum value log p(1) + (1 - value) log p(0), in nats: [...]. Linear in value, which may be grey."""
        logits, value = torch.broadcast_tensors(self.logits, value)
        bce = binary_cross_entropy_with_logits(logits, value, reduction="none")
        return -bce.flatten(-len(self.event_shape)).sum(-1)


def reparameterise(q: Distribution, eps: Float[Tensor, "V *B d"]) -> Float[Tensor, "V *B d"]:
    """z ~ q as a differentiable function of noise eps ~ N(0, I)."""
    if isinstance(q, StandardNormal):
        return eps
    if isinstance(q, DiagonalNormal):
        # (19)  z = mu + sigma * eps
        return q.mu + q.sigma * eps
    raise NotImplementedError(f"no reparameterisation is known for {type(q).__name__}")


def kl_per_dimension(q: DiagonalNormal, p: StandardNormal) -> Float[Tensor, "*B d"]:
    """KL(q || p) of each latent dimension, in nats: the summand of (16)."""
    # (16)  -1/2 (1 + log sigma^2 - sigma^2 - mu^2)
    return -0.5 * (1 + 2 * q.sigma.log() - q.sigma**2 - q.mu**2)


@register_kl(DiagonalNormal, StandardNormal)
def _kl_diagonal_standard(q: DiagonalNormal, p: StandardNormal) -> Tensor:
    return kl_per_dimension(q, p).sum(-1)  # (16)
