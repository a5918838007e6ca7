"""What is maximised."""

from abc import ABC, abstractmethod
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import kl_divergence

from vae_lab.checks import whole
from vae_lab.distributions import reparameterise
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
    """The evidence lower bound (7): reconstruction by V samples (19), the KL in closed form (16).

    Args:
        V: samples of z for each datum, averaged outside the logarithm
    """

    def __init__(self, V: int) -> None:
        super().__init__()
        self.samples = whole("V", V)

    def forward(self, vae: VAE, batch: Batch, eps: Float[Tensor, "V B d"]) -> Terms:
        q, p = vae.encoder(batch), vae.p_z()
        # (19)  z = mu + sigma * eps
        z = reparameterise(q, eps)  # [V, B, d]
        # (19)  1/V sum_v log p(x | z_v)
        rec = vae.p_x(z, batch.label).log_prob(batch.x).mean(0)  # [B]
        # (16)  1/2 sum_j (mu_j^2 + sigma_j^2 - 1 - log sigma_j^2)
        kl = kl_divergence(q, p)  # [B]
        # (7), (20)
        elbo = rec - kl
        return Terms(loss=-elbo, elbo=elbo, rec=rec, kl=kl)
