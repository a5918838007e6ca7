"""The model: an encoder, a decoder, a likelihood and a prior that fit together."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.distributions import reparameterise
from vae_lab.interfaces import Decoder, Encoder, Likelihood, Prior


@final
class VAE(nn.Module):
    """q(z | x), f, p(x | eta) and p(z) of (8).

    Raises:
        ValueError: if the parts disagree on the number of latent dimensions or on the shape of a datum.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, likelihood: Likelihood, prior: Prior) -> None:
        super().__init__()
        if not encoder.d == decoder.d == prior.d:
            raise ValueError(f"d must be the same for encoder, decoder, prior, got {encoder.d}, {decoder.d}, {prior.d}")
        if not encoder.shape == decoder.shape == likelihood.shape:
            raise ValueError(
                "shape must be the same for encoder, decoder, likelihood, got "
                f"{list(encoder.shape)}, {list(decoder.shape)}, {list(likelihood.shape)}"
            )
        self.encoder, self.decoder, self.likelihood, self.prior = encoder, decoder, likelihood, prior

    @property
    def d(self) -> int:
        """The number of latent dimensions."""
        return self.encoder.d

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return self.encoder.shape

    def p_x(self, z: Float[Tensor, "*lead d"]) -> Distribution:
        """p(x | z) at each z: batch shape [...], event shape `shape`."""
        return self.likelihood(self.decoder(z))

    def sample(self, eps: Float[Tensor, "n d"]) -> Tensor:
        """The means of p(x | z) at z ~ p(z), as in (1), a function of noise eps ~ N(0, I): [n, *shape]."""
        return self.p_x(reparameterise(self.prior(), eps)).mean
