"""log p(x) by sampling: the prior (1), the posterior (Burda et al. 2016), and how far either can be trusted."""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from vae_lab.checks import whole
from vae_lab.distributions import reparameterise
from vae_lab.evaluation.chunks import MEMORY, Progress, Proposal, rows_within, samples, some
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

TRUSTED = 10
"""An estimate from an effective sample size below this is not converged: a few weights decide it, and its own error
cannot be believed. At or above it no weight has more than a third of the sum."""


class Estimate(NamedTuple):
    """Of log p(x), for each datum and in nats. Float64.

    Attributes:
        log_p: low on average (Jensen's inequality), by about error^2 / 2
        error: standard error by the delta method, sqrt(CV^2 / K) of K weights; infinite for one weight
        ess: effective sample size, (sum w)^2 / sum w^2, from 1 to K
    """

    log_p: Float[Tensor, " B"]
    error: Float[Tensor, " B"]
    ess: Float[Tensor, " B"]


class Bound(NamedTuple):
    """The ELBO (7) and its parts, for each datum and in nats. Float64.

    Attributes:
        elbo: rec - kl
        error: the ELBO's standard error over the V samples; infinite for one sample
        rec: 1/V sum_v log p(x | z_v)
        kl: KL(q || p) in closed form where one is known, else 1/V sum_v log q(z_v | x) - log p(z_v)
    """

    elbo: Float[Tensor, " B"]
    error: Float[Tensor, " B"]
    rec: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]


@final
class LogMeanExp:
    """log 1/K sum_k w_k of weights that come a few at a time, each known by its logarithm; in float64."""

    def __init__(self, like: Tensor, n: int) -> None:
        self.top, self.total, self.squares, self.count = torch.zeros(4, n, device=like.device, dtype=torch.float64)
        self.top.fill_(torch.finfo(torch.float64).min)  # not -inf, of which differences are NaN

    def add(self, where: slice, log_w: Float[Tensor, "k b"]) -> None:
        """Takes in k weights of each datum at `where`."""
        log_w, before = log_w.double(), self.top[where]
        top = torch.maximum(before, log_w.amax(0))
        w, scale = (log_w - top).exp(), (before - top).exp()
        self.total[where] = self.total[where] * scale + w.sum(0)
        self.squares[where] = self.squares[where] * scale**2 + (w**2).sum(0)
        self.top[where] = top
        self.count[where] += len(log_w)

    def estimate(self) -> Estimate:
        """From all weights so far."""
        K, ess = self.count, self.total**2 / self.squares
        # CV^2 = E w^2 / (E w)^2 - 1 = K / ess - 1; var of log mean w = CV^2 / K, with K - 1 for an unbiased CV^2
        cv2 = (K / ess - 1).clamp(min=0)
        error = torch.where(K > 1, (cv2 / (K - 1)).sqrt(), torch.inf)
        return Estimate(self.top + (self.total / K).log(), error, ess)


@torch.no_grad()
def naive_mc(
    vae: VAE,
    batch: Batch,
    m: int,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Estimate:
    """log 1/m sum_i p(x | z_i), z_i ~ p(z): (1). Each datum has draws of its own, so that the data's errors are
    independent, as the product over data in (2) needs.

    It converges only where the posterior is not much narrower than the prior: look at `ess` (see `TRUSTED`).

    Args:
        m: draws for each datum
        memory: the most bytes that may be used at a time; it does not change the result
    """
    p = vae.p_z()
    return _weighed(vae, batch, whole("m", m), lambda _: p, log_likelihood(vae), generator, memory, progress)


@torch.no_grad()
def importance(
    vae: VAE,
    batch: Batch,
    K: int,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Estimate:
    """log 1/K sum_k w_k, w = p(x | z) p(z) / q(z | x), z_k ~ q(z | x): IWAE-K (Burda et al. 2016, (8)).

    The encoder runs once for each datum.

    Args:
        K: samples of each datum
        memory: the most bytes that may be used at a time; it does not change the result
    Raises:
        ValueError: if the prior or the posterior has no density.
    """
    require_densities(vae, batch)
    p, log_p_x = vae.p_z(), log_likelihood(vae)

    def log_w(q: Distribution, z: Tensor, data: Batch) -> Tensor:
        return log_p_x(q, z, data) + p.log_prob(z) - q.log_prob(z)

    return _weighed(vae, batch, whole("K", K), vae.encoder, log_w, generator, memory, progress)


LogWeight = Callable[[Distribution, Tensor, Batch], Tensor]


def _weighed(
    vae: VAE,
    batch: Batch,
    n: int,
    proposal: Proposal,
    log_w: LogWeight,
    generator: torch.Generator | None,
    memory: int,
    progress: Progress | None,
) -> Estimate:
    def work(data: Batch) -> None:
        q = proposal(data)
        log_w(q, reparameterise(q, data.x.new_zeros(1, len(data.x), vae.d)), data)

    rows = rows_within(memory, batch, work)
    weights = LogMeanExp(batch.x, len(batch.x))
    for where, data, q, z in samples(vae, batch, n, proposal, rows, generator, progress):
        weights.add(where, log_w(q, z, data))
    return weights.estimate()


@torch.no_grad()
def bound(vae: VAE, batch: Batch, eps: Float[Tensor, "V B d"], memory: int = MEMORY) -> Bound:
    """The ELBO (7) by the samples (19) that the noise eps gives.

    Args:
        eps: N(0, I)
        memory: the most bytes that may be used at a time, besides eps; it changes the result by no more than rounding
    """
    V, N = eps.shape[:2]
    p, log_p_x = vae.p_z(), log_likelihood(vae)

    def terms(data: Batch, q: Distribution, z: Tensor) -> tuple[Tensor, Tensor]:
        return log_p_x(q, z, data).double(), divergences(q, p, z).double()  # [v, b]

    def work(data: Batch) -> None:
        q = vae.encoder(data)
        terms(data, q, reparameterise(q, data.x.new_zeros(1, len(data.x), vae.d)))

    rows = rows_within(memory, batch, work)
    rec, kl, first, squares = (torch.zeros(N, device=eps.device, dtype=torch.float64) for _ in range(4))
    for start in range(0, N, rows):
        where = slice(start, min(start + rows, N))
        data = some(batch, where)
        q = vae.encoder(data)
        for i, part in enumerate(eps[:, where].split(max(1, rows // len(data.x)))):
            log_p, log_ratio = terms(data, q, reparameterise(q, part))
            values = log_p - log_ratio
            if i == 0:
                first[where] = values[0]  # deviations from any fixed value give the variance without cancellation
            rec[where] += log_p.sum(0) / V
            kl[where] += log_ratio.expand_as(log_p).sum(0) / V
            squares[where] += ((values - first[where]) ** 2).sum(0) / V
    variance = (squares - (rec - kl - first) ** 2).clamp(min=0)
    error = (variance / (V - 1)).sqrt() if V > 1 else torch.full_like(variance, torch.inf)
    return Bound(rec - kl, error, rec, kl)


def log_likelihood(vae: VAE) -> LogWeight:
    """log p(x | z) of each sample: [k, b]."""
    return lambda q, z, data: vae.p_x(z, data.label).log_prob(data.x)


def divergences(q: Distribution, p: Distribution, z: Float[Tensor, "k b d"]) -> Float[Tensor, "_ b"]:
    """KL(q || p) in closed form [1, b] where one is known, else log q(z) - log p(z) of each sample [k, b]."""
    try:
        return kl_divergence(q, p)[None]
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)


def require_densities(vae: VAE, batch: Batch) -> None:
    """Raises ValueError if p(z) or q(z | x) has no log_prob."""
    require_density("prior", vae.p_z(), batch)
    require_density("posterior", vae.encoder(some(batch, slice(0, 1))), batch)


def require_density(name: str, p: Distribution, batch: Batch) -> None:
    """Raises ValueError if a distribution over z has no log_prob."""
    try:
        p.log_prob(batch.x.new_zeros(1, *p.event_shape))
    except NotImplementedError:
        raise ValueError(f"{name} must have a density (log_prob), got {type(p).__name__} without one") from None
