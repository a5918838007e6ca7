"""f: z -> eta, the decoders of (8). eta parametrises p(x | z): what it means is the likelihood's affair."""

import math
from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from vae_lab import networks
from vae_lab.checks import whole, wholes
from vae_lab.interfaces import Decoder
from vae_lab.networks import halvings, image_shape, mlp


@final
class Linear(Decoder):
    """f(z) = W z + b: with a Gaussian likelihood the model is probabilistic PCA.

    Args:
        shape: of eta, any
        d: latent dimensions
    """

    def __init__(self, shape: Sequence[int], d: int) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.f = nn.Linear(d, math.prod(self.shape))

    def forward(self, z: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead_shape"]:
        return self.f(z).unflatten(-1, self.shape)


@final
class MLP(Decoder):
    """A perceptron with the given hidden widths (KW13, appendix C).

    Args:
        shape: of eta, any
        d: latent dimensions
        hidden: widths of the hidden layers, from z to x
        activation: a name from `networks.ACTIVATIONS`
    """

    def __init__(self, shape: Sequence[int], d: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.net = mlp([d, *wholes("hidden", hidden), math.prod(self.shape)], activation)

    def forward(self, z: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead_shape"]:
        return self.net(z).unflatten(-1, self.shape)


@final
class Conv(Decoder):
    """One linear layer, then 3x3 transposed convolutions of stride 2. Images of any size.

    Args:
        shape: of eta, [C, H, W]
        d: latent dimensions
        channels: of each convolution's input, from z to x
        activation: a name from `networks.ACTIVATIONS`
    """

    def __init__(self, shape: Sequence[int], d: int, channels: Sequence[int], activation: str) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        C, H, W = image_shape(self.shape, "decoder Conv")
        channels = wholes("channels", channels)
        hs, ws = halvings(H, len(channels))[::-1], halvings(W, len(channels))[::-1]
        layers: list[nn.Module] = [nn.Linear(d, [*channels, C][0] * hs[0] * ws[0])]
        layers += [nn.Unflatten(1, ([*channels, C][0], hs[0], ws[0]))]
        for i, (c_in, c_out) in enumerate(zip(channels, [*channels[1:], C], strict=True)):
            # a side of n becomes 2n - 1, or 2n with an output padding of 1
            pad = (hs[i + 1] - 2 * hs[i] + 1, ws[i + 1] - 2 * ws[i] + 1)
            layers += [networks.activation(activation)]
            layers += [nn.ConvTranspose2d(c_in, c_out, kernel_size=3, stride=2, padding=1, output_padding=pad)]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead_shape"]:
        return self.net(z.reshape(-1, self.d)).reshape(*z.shape[:-1], *self.shape)
