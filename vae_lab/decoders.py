"""f: z -> eta, the decoders of (8). eta parametrises p(x | z): what it means is the likelihood's affair."""

import math
from collections.abc import Sequence
from typing import final

from jaxtyping import Float, Int
from torch import Tensor, nn

from vae_lab import networks
from vae_lab.checks import whole, wholes
from vae_lab.interfaces import Decoder
from vae_lab.networks import halvings, image_shape, mlp, with_label


@final
class Linear(Decoder):
    """f(z) = W z + b: with a Gaussian likelihood the model is probabilistic PCA.

    Args:
        shape: of one datum, any
        d: latent dimensions
        outputs: numbers for each value of a datum, as many as the likelihood takes
        classes: of the data's labels, for a conditional model; else 0
    """

    def __init__(self, shape: Sequence[int], d: int, outputs: int = 1, classes: int = 0) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.outputs, self.classes = whole("outputs", outputs), whole("classes", classes, least=0)
        self.f = nn.Linear(d + classes, outputs * math.prod(self.shape))

    def forward(
        self, z: Float[Tensor, "*lead d"], label: Int[Tensor, "*some"] | None = None
    ) -> Float[Tensor, "*lead_eta"]:
        return self.f(with_label(z, label, self.classes)).unflatten(-1, eta_shape(self.shape, self.outputs))


@final
class MLP(Decoder):
    """A perceptron with the given hidden widths (KW13, appendix C).

    Args:
        shape: of one datum, any
        d: latent dimensions
        hidden: widths of the hidden layers, from z to x
        activation: a name from `networks.ACTIVATIONS`
        outputs: numbers for each value of a datum, as many as the likelihood takes
        classes: of the data's labels, for a conditional model; else 0
    """

    def __init__(
        self,
        shape: Sequence[int],
        d: int,
        hidden: Sequence[int],
        activation: str,
        outputs: int = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.outputs, self.classes = whole("outputs", outputs), whole("classes", classes, least=0)
        self.net = mlp([d + classes, *wholes("hidden", hidden), outputs * math.prod(self.shape)], activation)

    def forward(
        self, z: Float[Tensor, "*lead d"], label: Int[Tensor, "*some"] | None = None
    ) -> Float[Tensor, "*lead_eta"]:
        lead, z = z.shape[:-1], with_label(z, label, self.classes)
        return self.net(z.reshape(-1, z.shape[-1])).reshape(*lead, *eta_shape(self.shape, self.outputs))


@final
class Conv(Decoder):
    """One linear layer, then 3x3 transposed convolutions of stride 2. Images of any size.

    Args:
        shape: of one datum, [C, H, W]
        d: latent dimensions
        channels: of each convolution's input, from z to x
        activation: a name from `networks.ACTIVATIONS`
        outputs: numbers for each value of a datum, as many as the likelihood takes
        classes: of the data's labels, for a conditional model; else 0
    """

    def __init__(
        self,
        shape: Sequence[int],
        d: int,
        channels: Sequence[int],
        activation: str,
        outputs: int = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.outputs, self.classes = whole("outputs", outputs), whole("classes", classes, least=0)
        C, H, W = image_shape(self.shape, "decoder Conv")
        channels, C = wholes("channels", channels), C * outputs
        hs, ws = halvings(H, len(channels))[::-1], halvings(W, len(channels))[::-1]
        layers: list[nn.Module] = [nn.Linear(d + classes, [*channels, C][0] * hs[0] * ws[0])]
        layers += [nn.Unflatten(1, ([*channels, C][0], hs[0], ws[0]))]
        for i, (c_in, c_out) in enumerate(zip(channels, [*channels[1:], C], strict=True)):
            # a side of n becomes 2n - 1, or 2n with an output padding of 1
            pad = (hs[i + 1] - 2 * hs[i] + 1, ws[i + 1] - 2 * ws[i] + 1)
            layers += [networks.activation(activation)]
            layers += [nn.ConvTranspose2d(c_in, c_out, kernel_size=3, stride=2, padding=1, output_padding=pad)]
        self.net = nn.Sequential(*layers)

    def forward(
        self, z: Float[Tensor, "*lead d"], label: Int[Tensor, "*some"] | None = None
    ) -> Float[Tensor, "*lead_eta"]:
        lead, z = z.shape[:-1], with_label(z, label, self.classes)
        return self.net(z.reshape(-1, z.shape[-1])).reshape(*lead, *eta_shape(self.shape, self.outputs))


def eta_shape(shape: tuple[int, ...], outputs: int) -> tuple[int, ...]:
    """The shape of eta for one datum."""
    return shape if outputs == 1 else (outputs, *shape)
