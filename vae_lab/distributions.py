"""The distributions of the note that torch has not, or has only in a slower form.

Each may be called under `torch.func.vmap`: nothing is validated, nothing is sampled inside.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, Transform, register_kl
from torch.nn.functional import binary_cross_entropy_with_logits, softplus


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

    def log_prob(self, value: Float[Tensor, "*lead d"]) -> Float[Tensor, "..."]:
        """log N(value | mu, diag(sigma^2)), in nats: (10). Batches broadcast."""
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


class FullNormal(Distribution):
    """N(mu, L L^T) over the last dimension.

    Args:
        mu: [..., d]
        L: lower triangular, its diagonal > 0: [..., d, d]
    """

    def __init__(self, mu: Float[Tensor, "*B d"], L: Float[Tensor, "*B d d"]) -> None:
        self.mu, self.L = mu, L
        super().__init__(mu.shape[:-1], mu.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        """The covariance's diagonal."""
        return (self.L**2).sum(-1)

    def log_prob(self, value: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
        """log N(value | mu, L L^T), in nats."""
        # -1/2 (||eps||^2 + d log 2 pi) - log det L, where eps = L^-1 (value - mu)
        eps = torch.linalg.solve_triangular(self.L, (value - self.mu)[..., None], upper=False)[..., 0]
        return -0.5 * (eps**2 + math.log(2 * math.pi)).sum(-1) - self.log_det()

    def log_det(self) -> Float[Tensor, "*B"]:
        """log det L = sum_j log L_jj."""
        return self.L.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class TransformedNormal(Distribution):
    """z = mu + sigma * u, where T(u) = eps ~ N(0, I). Its mean and variance are not known.

    Args:
        mu: [..., d]
        sigma: [..., d], > 0
        h: what T depends on: [..., k]
        flow: h -> T, as zuko's lazy transformations
    """

    def __init__(
        self,
        mu: Float[Tensor, "*B d"],
        sigma: Float[Tensor, "*B d"],
        h: Float[Tensor, "*B k"],
        flow: Callable[[Tensor], Transform],
    ) -> None:
        self.mu, self.sigma, self.h, self.flow = mu, sigma, h, flow
        super().__init__(mu.shape[:-1], mu.shape[-1:], validate_args=False)

    def log_prob(self, value: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
        """log N(T(u) | 0, I) + log |det dT/du| - sum_j log sigma_j, u = (value - mu) / sigma, in nats."""
        u = (value - self.mu) / self.sigma
        if not u.numel():
            return u.sum(-1)  # zuko does not reshape nothing
        eps, log_det = self.flow(self.h).call_and_ladj(u)  # type: ignore[attr-defined]  # zuko's
        return -0.5 * (eps**2 + math.log(2 * math.pi)).sum(-1) + log_det - self.sigma.log().sum(-1)


class Mixture(Distribution):
    """sum_k w_k q_k(z).

    Args:
        log_w: the weights' logarithms; the weights sum to 1: [K]
        components: of batch shape [K]
    """

    def __init__(self, log_w: Float[Tensor, " K"], components: Distribution) -> None:
        self.log_w, self.components = log_w, components
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_w.exp() @ self.components.mean

    @property
    def variance(self) -> Tensor:
        return self.log_w.exp() @ (self.components.variance + (self.components.mean - self.mean) ** 2)

    def log_prob(self, value: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
        """log sum_k w_k q_k(value), in nats."""
        each = value[..., None, :].expand(*value.shape[:-1], *self.components.batch_shape, -1)  # [..., K, d]
        return (self.log_w + self.components.log_prob(each)).logsumexp(-1)


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
        sse = ((self.mu - value) ** 2).flatten(-len(self.event_shape)).sum(-1)
        return sse / (-2 * self.s2) - D / 2 * torch.log(2 * math.pi * self.s2)


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
        if self.logits.requires_grad:
            logits, value = torch.broadcast_tensors(self.logits, value)
            bce = binary_cross_entropy_with_logits(logits, value, reduction="none")
        else:  # the same in two passes instead of four, but not with a gradient
            bce = torch.addcmul(softplus(self.logits), self.logits, value, value=-1)
        return -bce.flatten(-len(self.event_shape)).sum(-1)


def reparameterise(q: Distribution, eps: Float[Tensor, "V *B d"]) -> Float[Tensor, "V *B d"]:
    """z ~ q as a function of noise eps ~ N(0, I), differentiable; a mixture's is not where it goes from one component
    to the next."""
    if isinstance(q, StandardNormal):
        return eps
    if isinstance(q, DiagonalNormal):
        # (19)  z = mu + sigma * eps
        return q.mu + q.sigma * eps
    if isinstance(q, FullNormal):
        # z = mu + L eps
        return q.mu + (q.L @ eps[..., None])[..., 0]
    if isinstance(q, TransformedNormal):
        # z = mu + sigma * T^-1(eps)
        return q.mu + q.sigma * q.flow(q.h).inv(eps)
    if isinstance(q, Mixture):
        # the first noise chooses the component, and what that leaves of it is as good as new
        tiny = torch.finfo(eps.dtype).eps  # to stay off 0 and 1, whose quantiles are infinite
        w, u = q.log_w.exp(), torch.special.ndtr(eps[..., 0]).clamp(tiny, 1 - tiny)
        cumulated = w.cumsum(-1)  # [K]
        k = (u[..., None] > cumulated[:-1]).sum(-1)  # [...]
        rest = ((u - cumulated[k]) / w[k] + 1).clamp(tiny, 1 - tiny)  # ~ U(0, 1)
        eps = torch.cat([torch.special.ndtri(rest)[..., None], eps[..., 1:]], -1)
        return reparameterise(select(q.components, k), eps)
    raise NotImplementedError(f"no reparameterisation is known for {type(q).__name__}")


def select(q: Distribution, k: Int[Tensor, "*some"]) -> Distribution:
    """Of a batch of distributions [K], those at k: batch shape [...]."""
    if isinstance(q, DiagonalNormal):
        return DiagonalNormal(q.mu[k], q.sigma[k])
    if isinstance(q, FullNormal):
        return FullNormal(q.mu[k], q.L[k])
    if isinstance(q, TransformedNormal):
        return TransformedNormal(q.mu[k], q.sigma[k], q.h[k], q.flow)
    raise NotImplementedError(f"no choice among distributions is known for {type(q).__name__}")


def centre(q: Distribution) -> Float[Tensor, "*B d"]:
    """One point for q: its mean or, where that is not known, what the noise 0 becomes."""
    return reparameterise(q, torch.zeros_like(q.mu)[None])[0] if isinstance(q, TransformedNormal) else q.mean


def detached(q: Distribution) -> Distribution:
    """q as a constant: no gradient reaches what it was made from.

    Raises:
        ValueError: for a distribution whose parameters cannot be held still.
    """
    if isinstance(q, DiagonalNormal):
        return DiagonalNormal(q.mu.detach(), q.sigma.detach())
    if isinstance(q, FullNormal):
        return FullNormal(q.mu.detach(), q.L.detach())
    raise ValueError(f"gradient must be plain for a posterior of type {type(q).__name__}: its score cannot be left out")


def kl_per_dimension(q: DiagonalNormal, p: StandardNormal) -> Float[Tensor, "*B d"]:
    """KL(q || p) of each latent dimension, in nats: the summand of (16)."""
    # (16)  1/2 (mu^2 + sigma^2 - (1 + log sigma^2))
    return 0.5 * (q.mu**2 + (q.sigma**2 - (1 + 2 * q.sigma.log())))


@register_kl(DiagonalNormal, StandardNormal)
def _kl_diagonal_standard(q: DiagonalNormal, p: StandardNormal) -> Tensor:
    return kl_per_dimension(q, p).sum(-1)  # (16)


@register_kl(FullNormal, StandardNormal)
def _kl_full_standard(q: FullNormal, p: StandardNormal) -> Tensor:
    # 1/2 (tr L L^T + mu^T mu - d) - log det L
    return 0.5 * ((q.L**2).sum((-2, -1)) + (q.mu**2 - 1).sum(-1)) - q.log_det()
