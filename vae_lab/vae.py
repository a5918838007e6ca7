"""The model: an encoder, a decoder, a likelihood and a prior that fit together."""

from typing import final

from jaxtyping import Float, Int
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
        if decoder.outputs != likelihood.outputs:
            name = type(likelihood).__name__
            raise ValueError(f"outputs of the decoder must be {likelihood.outputs} for {name}, got {decoder.outputs}")
        self.encoder, self.decoder, self.likelihood, self.prior = encoder, decoder, likelihood, prior

    @property
    def d(self) -> int:
        """The number of latent dimensions."""
        return self.encoder.d

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return self.encoder.shape

    def p_z(self) -> Distribution:
        """p(z): event shape [d]."""
        return self.prior(self.encoder)

    def p_x(self, z: Float[Tensor, "*lead d"], label: Int[Tensor, "*some"] | None = None) -> Distribution:
        """p(x | z) at each z, or p(x | z, label): batch shape [...], event shape `shape`."""
        return self.likelihood(self.decoder(z, label))

    def sample(self, eps: Float[Tensor, "n d"], label: Int[Tensor, " n"] | None = None) -> Tensor:
        """The means of p(x | z) at z ~ p(z), as in (1), a function of noise eps ~ N(0, I): [n, *shape]."""
        return self.p_x(reparameterise(self.p_z(), eps), label).mean
