"""What is maximised.

`V` samples stand outside the logarithm (19), `K` inside it (Burda et al. 2016). Whatever the loss, the terms `elbo`,
`rec` and `kl` are those of the evidence lower bound (7), so that runs of different objectives compare.
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vae_lab.checks import number, one_of, whole
from vae_lab.densities import ProfiledNormal
from vae_lab.distributions import (
    DiagonalNormal,
    IsotropicNormal,
    StandardNormal,
    detached,
    kl_per_dimension,
    reparameterise,
)
from vae_lab.interfaces import Batch, Terms
from vae_lab.vae import VAE


class Objective(nn.Module, ABC):
    """(model, batch, noise) -> Terms. The noise eps ~ N(0, I) is [samples, B, d] and drawn by the caller, so that a
    run that is resumed, packed with others or split over processes sees the very same noise."""

    samples: int

    @abstractmethod
    def forward(self, vae: VAE, batch: Batch, eps: Float[Tensor, "V B d"]) -> Terms: ...


@final
class Elbo(Objective):
    """The evidence lower bound (7): reconstruction by V samples (19), the KL in closed form (16) where there is one.

    `beta`, `warmup` and `free_bits` weigh the KL in the loss alone.

    Args:
        V: samples of z for each datum, averaged outside the logarithm
        kl: "analytic" (KW13's estimator B), or "monte_carlo": by the same V samples (KW13's estimator A), as is done
            in any case where no closed form is known
        beta: weight of the KL (Higgins et al. 2017)
        warmup: training steps over which that weight grows linearly to beta (Bowman et al. 2016)
        free_bits: nats of each latent dimension's KL that cost nothing, datum by datum (after Kingma et al. 2016)
        gradient: the encoder's. "plain": through z, as in (19). "stl": that without the score of q, whose mean is 0
            (sticking the landing, Roeder et al. 2017). To compare with: "score", E[log p(x | z) grad log q(z | x)], of
            the right mean and a large variance; "detached", which is wrong: z taken for a constant
    Raises:
        ValueError: for arguments that exclude each other.
    """

    seen: Tensor

    def __init__(
        self,
        V: int,
        kl: str = "analytic",
        beta: float = 1.0,
        warmup: int = 0,
        free_bits: float = 0.0,
        gradient: str = "plain",
    ) -> None:
        super().__init__()
        self.samples = whole("V", V)
        self.kl = one_of("kl", kl, ("analytic", "monte_carlo"))
        self.beta, self.warmup = number("beta", beta, least=0), whole("warmup", warmup, least=0)
        self.free_bits = number("free_bits", free_bits, least=0)
        if gradient == "dreg":
            raise ValueError("gradient must not be dreg for the ELBO: with one sample inside the logarithm it is stl")
        self.gradient = one_of("gradient", gradient, ("plain", "stl", "score", "detached"))
        if gradient == "stl" and kl == "analytic":
            raise ValueError("gradient must not be stl where kl is analytic: a closed form (16) has no score to drop")
        if gradient in ("score", "detached") and kl != "analytic":
            raise ValueError(f"gradient must not be {gradient} where kl is {kl}: z carries no gradient to it")
        if free_bits and kl != "analytic":
            raise ValueError(f"free_bits must be 0 where kl is {kl}: samples give no KL of each dimension")
        self.register_buffer("seen", torch.zeros(()))  # training steps

    def forward(self, vae: VAE, batch: Batch, eps: Float[Tensor, "V B d"]) -> Terms:
        q, p = vae.encoder(batch), vae.p_z()
        # (19)  z = mu + sigma * eps
        z = reparameterise(q, eps)  # [V, B, d]
        constant = self.gradient in ("score", "detached")
        z = z.detach() if constant else z
        # (19)  1/V sum_v log p(x | z_v)
        log_p_x = vae.p_x(z, batch.label).log_prob(batch.x)  # [V, B]
        rec = log_p_x.mean(0)  # [B]
        # (16)  1/2 sum_j (mu_j^2 + sigma_j^2 - 1 - log sigma_j^2)
        kl = kl_divergence(q, p) if constant else divergence(q, p, z, self.kl, stl=self.gradient == "stl")  # [B]
        # (7), (20)
        elbo = rec - kl
        loss = self.weight() * self.charged(q, p, kl) - rec
        if self.gradient == "score":
            log_q = q.log_prob(z)
            loss = loss - (log_p_x.detach() * (log_q - log_q.detach())).mean(0)  # of value 0
        return Terms(loss, elbo, rec, kl)

    def weight(self) -> Tensor | float:
        """The KL's weight at this step of training."""
        if not self.warmup:
            return self.beta
        if self.training:
            self.seen += 1
        return self.beta * (self.seen / self.warmup).clamp(max=1)

    def charged(self, q: Distribution, p: Distribution, kl: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The KL that the loss is charged: all of it, or what is not free."""
        if not self.free_bits:
            return kl
        if not isinstance(q, DiagonalNormal) or not isinstance(p, StandardNormal):
            raise ValueError("free_bits must be 0 where q and p have no KL of each latent dimension (16)")
        return kl_per_dimension(q, p).clamp(min=self.free_bits).sum(-1)


@final
class Iwae(Objective):
    """The importance weighted bound E log 1/K sum_k w_k, w = p(x | z) p(z) / q(z | x) (Burda et al. 2016, (8)).

    Args:
        K: samples of z for each datum, averaged inside the logarithm
        gradient: "plain"; "stl", which leaves the score of q out and is biased for K > 1; "dreg", which replaces it
            by a term of the same mean (doubly reparameterised: Tucker et al. 2019)
    """

    def __init__(self, K: int, gradient: str = "plain") -> None:
        super().__init__()
        self.samples = whole("K", K)
        self.gradient = one_of("gradient", gradient, ("plain", "stl", "dreg"))

    def forward(self, vae: VAE, batch: Batch, eps: Float[Tensor, "K B d"]) -> Terms:
        q, p = vae.encoder(batch), vae.p_z()
        z = reparameterise(q, eps)  # [K, B, d]
        p_x = vae.p_x(z, batch.label)
        if isinstance(p_x, ProfiledNormal):
            raise ValueError("likelihood must not be gaussian_optimal: its s2 is best for the ELBO, not for this bound")
        log_p_x = p_x.log_prob(batch.x)  # [K, B]
        log_w = log_p_x + p.log_prob(z) - (q if self.gradient == "plain" else detached(q)).log_prob(z)
        bound = log_w.logsumexp(0) - math.log(len(eps))
        loss = -bound
        if self.gradient == "dreg":
            w = log_w.softmax(0).detach()
            if z.requires_grad:
                z.register_hook(lambda grad: w[..., None] * grad)  # sum_k w_k^2 on the way to the encoder
            pulled = (w * log_w).sum(0)
            loss = (pulled - bound).detach() - pulled
        rec, kl = log_p_x.mean(0), divergence(q, p, z, "analytic")
        return Terms(loss=loss, elbo=rec - kl, rec=rec, kl=kl)


@final
class NoteEq20(Objective):
    """(20) as the note prints it: squared errors without 1 / (2 s2) and constants, minus the KL.

    Here to show that s2 then does nothing: whatever it is, training finds what the ELBO would at s2 = 1/2.

    Args:
        V: samples of z for each datum
    """

    def __init__(self, V: int) -> None:
        super().__init__()
        self.samples = whole("V", V)

    def forward(self, vae: VAE, batch: Batch, eps: Float[Tensor, "V B d"]) -> Terms:
        q, p = vae.encoder(batch), vae.p_z()
        z = reparameterise(q, eps)
        p_x, kl = vae.p_x(z, batch.label), divergence(q, p, z, "analytic")
        if not isinstance(p_x, IsotropicNormal):
            raise ValueError("likelihood must be gaussian for (20), which has a squared error and nothing else")
        # (20)  -1/V sum_v ||f(z_v) - x||^2 - KL
        sse = ((p_x.mean - batch.x) ** 2).flatten(2).sum(-1).mean(0)
        rec = p_x.log_prob(batch.x).mean(0)
        return Terms(loss=sse + kl, elbo=rec - kl, rec=rec, kl=kl)


def divergence(
    q: Distribution, p: Distribution, z: Float[Tensor, "V B d"], how: str, stl: bool = False
) -> Float[Tensor, " B"]:
    """KL(q || p): in closed form if it is to be "analytic" and one is known, else 1/V sum_v log q(z_v) - log p(z_v)."""
    if how == "analytic":
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            pass  # torch knows none for these types
    return ((detached(q) if stl else q).log_prob(z) - p.log_prob(z)).mean(0)
