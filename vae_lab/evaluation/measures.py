"""What a trained posterior loses and says: the gap of (4) and its parts, rate and distortion, information, collapse."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vae_lab.checks import number, whole
from vae_lab.distributions import DiagonalNormal, StandardNormal, centre, kl_per_dimension, reparameterise
from vae_lab.encoders import Free
from vae_lab.evaluation.chunks import MEMORY, Progress, randn, rows_within, samples, some
from vae_lab.evaluation.estimators import Bound, Estimate, bound, divergences, require_densities
from vae_lab.evaluation.refinement import with_encoder
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

ACTIVE = 0.01
"""A latent unit j is active if A_j = Var_x(E_q[z_j | x]) is above this (Burda et al. 2016, section 5.2)."""


class Identity(NamedTuple):
    """log p(x) = ELBO + KL(q(z | x) || p(z | x)), (3)-(4): the three numbers and their standard errors, per datum."""

    log_p: Float[Tensor, " B"]
    elbo: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]
    log_p_error: Float[Tensor, " B"]
    elbo_error: Float[Tensor, " B"]
    kl_error: Float[Tensor, " B"]


class Gaps(NamedTuple):
    """log p(x) - ELBO in two parts (Cremer et al. 2018), in nats per datum, with their standard errors.

    Attributes:
        approximation: log p - the ELBO of the best diagonal normal: what no phi_i (6) would win back
        amortisation: that ELBO - the encoder's: what is lost because phi is shared by all data (7)
    """

    approximation: Float[Tensor, " B"]
    amortisation: Float[Tensor, " B"]
    approximation_error: Float[Tensor, " B"]
    amortisation_error: Float[Tensor, " B"]


class Information(NamedTuple):
    """How much z says about x, under q; each of N data weighs 1/N. Nats per datum.

    Attributes:
        rate: KL(q(z | x) || p(z)) of each datum
        distortion: E_q ||x - E[x | z]||^2 of each datum, in squared units of x
        rec: E_q log p(x | z) of each datum; its negative is the distortion in nats
        mutual: log q(z | x) - log q(z) of each datum, z ~ q(z | x), q(z) = 1/N sum_i q(z | x_i). Its mean is I_q(x; z)
            of these N data, which is at most log N; of the data's source it is a lower bound on average (the N data's
            q(z) holds z's own x). It is tight while well below log N.
        marginal_kl: log q(z) - log p(z) of each datum. Its mean is KL(q(z) || p(z)); rate = mutual + marginal_kl on
            average
        means: E[z | x], or what stands for it where a posterior's mean is not known
        kl_dims: KL of each latent dimension, for a diagonal normal and a standard normal prior; else None
    """

    rate: Float[Tensor, " N"]
    distortion: Float[Tensor, " N"]
    rec: Float[Tensor, " N"]
    mutual: Float[Tensor, " N"]
    marginal_kl: Float[Tensor, " N"]
    means: Float[Tensor, "N d"]
    kl_dims: Float[Tensor, "N d"] | None


def identity(elbo: Bound, log_p: Estimate) -> Identity:
    """KL(q(z | x) || p(z | x)) = log p(x) - ELBO (4), from separate samples of the two."""
    error = (log_p.error**2 + elbo.error**2).sqrt()
    return Identity(log_p.log_p, elbo.elbo, log_p.log_p - elbo.elbo, log_p.error, elbo.error, error)


def gaps(
    vae: VAE,
    free: Free,
    batch: Batch,
    log_p: Estimate,
    V: int,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Gaps:
    """The inference gap, split by a posterior refitted to each datum; both ELBOs are by the same noise.

    Args:
        free: `refine`'s, of these data; too few steps make the approximation gap too large
        log_p: of these data, best by importance sampling from `free`, which is nearer the posterior than the encoder
        V: samples of each ELBO
        memory: the most bytes that may be used at a time
    """
    N = len(batch.x)
    eps = randn(batch, whole("V", V), N, vae.d, generator=generator)
    known = batch._replace(index=torch.arange(N, device=batch.x.device))
    amortised, refined = bound(vae, batch, eps, memory), bound(with_encoder(vae, free), known, eps, memory)
    return Gaps(
        approximation=log_p.log_p - refined.elbo,
        amortisation=refined.elbo - amortised.elbo,
        approximation_error=(log_p.error**2 + refined.error**2).sqrt(),
        amortisation_error=(refined.error**2 + amortised.error**2).sqrt(),
    )


@torch.no_grad()
def information(
    vae: VAE,
    batch: Batch,
    V: int,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Information:
    """Rate, distortion and mutual information of these data; N^2 evaluations of log q.

    Args:
        V: samples of each datum, for all but q(z), which is looked at in the first
        memory: the most bytes that may be used at a time; it does not change the result beyond rounding
    Raises:
        ValueError: if the prior or the posterior has no density.
    """
    require_densities(vae, batch)
    N, p, d = len(batch.x), vae.p_z(), vae.d

    def work(data: Batch) -> None:
        q = vae.encoder(data)
        z = reparameterise(q, data.x.new_zeros(1, len(data.x), d))
        p_x = vae.p_x(z, data.label)
        p_x.log_prob(data.x), (p_x.mean - data.x) ** 2, divergences(q, p, z)

    rows = rows_within(memory, batch, work)
    rate, distortion, rec, own, prior = batch.x.new_zeros(5, N, dtype=torch.float64)
    means, first = batch.x.new_zeros(2, N, d)
    kl_dims = batch.x.new_zeros(N, d)
    closed, count = True, torch.zeros(N)
    for where, data, q, z in samples(vae, batch, whole("V", V), vae.encoder, rows, generator, progress):
        p_x = vae.p_x(z, data.label)
        rec[where] += p_x.log_prob(data.x).double().sum(0) / V
        distortion[where] += ((p_x.mean - data.x) ** 2).flatten(2).sum(-1).double().sum(0) / V
        rate[where] += divergences(q, p, z).double().expand(z.shape[:2]).sum(0) / V
        if not count[where].any():
            first[where], means[where] = z[0], centre(q)
            own[where], prior[where] = q.log_prob(z[:1])[0].double(), p.log_prob(z[:1])[0].double()
            closed = closed and isinstance(q, DiagonalNormal) and isinstance(p, StandardNormal)
            if isinstance(q, DiagonalNormal) and isinstance(p, StandardNormal):
                kl_dims[where] = kl_per_dimension(q, p)
        count[where] += len(z)
    log_q = aggregate(vae, batch, first, memory)
    return Information(rate, distortion, rec, own - log_q, log_q - prior, means, kl_dims if closed else None)


@torch.no_grad()
def aggregate(vae: VAE, batch: Batch, z: Float[Tensor, "n d"], memory: int = MEMORY) -> Float[Tensor, " n"]:
    """log q(z) = log 1/N sum_i q(z | x_i), the aggregate posterior of all N data: exact."""
    N, n = len(batch.x), len(z)

    def work(data: Batch) -> None:
        vae.encoder(data).log_prob(z.new_zeros(1, len(data.x), vae.d))

    rows = rows_within(memory, batch, work)
    total = z.new_full((n,), -torch.inf, dtype=torch.float64)
    for start in range(0, N, rows):
        data = some(batch, slice(start, min(start + rows, N)))
        b, q = len(data.x), vae.encoder(data)
        for i in range(0, n, each := max(1, rows // b)):
            part = z[i : i + each, None].expand(-1, b, -1)
            total[i : i + each] = torch.logaddexp(total[i : i + each], q.log_prob(part).double().logsumexp(-1))
    return total - math.log(N)


def activity(means: Float[Tensor, "N d"]) -> Float[Tensor, " d"]:
    """A_j = Var_x(E_q[z_j | x]) (Burda et al. 2016, section 5.2)."""
    return means.double().var(0, correction=0)


def active_units(means: Float[Tensor, "N d"]) -> Int[Tensor, ""]:
    """How many latent units have A_j above `ACTIVE`."""
    return (activity(means) > ACTIVE).sum()


def collapsed(kl_dims: Float[Tensor, "N d"], epsilon: float, delta: float = 0.01) -> Bool[Tensor, " d"]:
    """Which latent dimensions are (epsilon, delta)-collapsed: KL_j < epsilon for a share of at least 1 - delta of the
    data (Lucas et al. 2019)."""
    share = (kl_dims < number("epsilon", epsilon, above=0)).double().mean(0)
    return share >= 1 - number("delta", delta, least=0)
