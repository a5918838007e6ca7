"""q(z | x), the encoders of (8)."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import nn
from torch.distributions import Distribution

from vae_lab import networks
from vae_lab.checks import number, whole, wholes
from vae_lab.distributions import DiagonalNormal
from vae_lab.interfaces import Batch, Encoder, Posterior
from vae_lab.networks import halvings, image_shape, mlp, with_label
from vae_lab.posteriors import Diagonal


@final
class Linear(Encoder):
    """mu = W x + b; one free sigma for all x. All that a linear decoder's exact posterior needs (probabilistic PCA).

    Args:
        shape: of one datum, any
        d: latent dimensions
        classes: of the data's labels, for a conditional model; else 0
    """

    def __init__(self, shape: Sequence[int], d: int, classes: int = 0) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.classes = whole("classes", classes, least=0)
        self.mu = nn.Linear(math.prod(self.shape) + classes, d)
        self.log_sigma = nn.Parameter(torch.zeros(d))

    def forward(self, batch: Batch) -> DiagonalNormal:
        mu = self.mu(with_label(batch.x.flatten(1), batch.label, self.classes))  # [B, d]
        return DiagonalNormal(mu, self.log_sigma.exp().expand_as(mu))


@final
class MLP(Encoder):
    """A perceptron with the given hidden widths, to the posterior's numbers (KW13, appendix C).

    Args:
        shape: of one datum, any
        d: latent dimensions
        hidden: widths of the hidden layers, from x to z
        activation: a name from `networks.ACTIVATIONS`
        posterior: the kind of q(z | x); None: a diagonal normal, as in (8)
        classes: of the data's labels, for a conditional model; else 0
    """

    def __init__(
        self,
        shape: Sequence[int],
        d: int,
        hidden: Sequence[int],
        activation: str,
        posterior: Posterior | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.classes = whole("classes", classes, least=0)
        self.posterior = Diagonal(d) if posterior is None else posterior
        widths = [math.prod(self.shape) + classes, *wholes("hidden", hidden), self.posterior.size]
        self.net = mlp(widths, activation)

    def forward(self, batch: Batch) -> Distribution:
        return self.posterior(self.net(with_label(batch.x.flatten(1), batch.label, self.classes)))


@final
class Conv(Encoder):
    """3x3 convolutions of stride 2, then one linear layer to the posterior's numbers. Images of any size.

    A label enters as one constant channel for each class.

    Args:
        shape: of one datum, [C, H, W]
        d: latent dimensions
        channels: of each convolution, from x to z
        activation: a name from `networks.ACTIVATIONS`
        posterior: the kind of q(z | x); None: a diagonal normal, as in (8)
        classes: of the data's labels, for a conditional model; else 0
    """

    def __init__(
        self,
        shape: Sequence[int],
        d: int,
        channels: Sequence[int],
        activation: str,
        posterior: Posterior | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.d = tuple(wholes("shape", shape)), whole("d", d)
        self.classes = whole("classes", classes, least=0)
        self.posterior = Diagonal(d) if posterior is None else posterior
        C, H, W = image_shape(self.shape, "encoder Conv")
        C += classes
        channels = wholes("channels", channels)
        layers: list[nn.Module] = []
        for c_in, c_out in zip([C, *channels], channels, strict=False):
            layers += [nn.Conv2d(c_in, c_out, kernel_size=3, stride=2, padding=1), networks.activation(activation)]
        h, w = halvings(H, len(channels))[-1], halvings(W, len(channels))[-1]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear([C, *channels][-1] * h * w, self.posterior.size))

    def forward(self, batch: Batch) -> Distribution:
        x = with_label(batch.x.movedim(1, -1), batch.label, self.classes).movedim(-1, 1) if self.classes else batch.x
        return self.posterior(self.net(x))


@final
class Free(Encoder):
    """mu_i and log sigma_i of its own for each training datum, found by the datum's index: (6), before amortisation.

    At first sigma_i = 1 and mu_i is nearly 0, as in the prior; not 0 itself, as a decoder that is even in z would then
    be at a saddle. Gradients are sparse, so that a step moves only the data that were drawn; `vmap` cannot stack them.

    Args:
        shape: of one datum, any
        d: latent dimensions
        n: training data
        lr: of the Adam that fits phi_i = (mu_i, log sigma_i), in training and to new data
        steps: how many it makes for a datum that has no phi_i yet, in validation and test
    """

    amortised = False

    def __init__(self, shape: Sequence[int], d: int, n: int, lr: float, steps: int) -> None:
        super().__init__()
        self.shape, self.d, self.n = tuple(wholes("shape", shape)), whole("d", d), whole("n", n)
        self.lr, self.steps = number("lr", lr, above=0), whole("steps", steps)
        self.phi = nn.Embedding(n, 2 * d, sparse=True)
        nn.init.normal_(self.phi.weight, std=0.01)
        nn.init.zeros_(self.phi.weight[:, d:])

    def forward(self, batch: Batch) -> DiagonalNormal:
        mu, log_sigma = self.phi(batch.index).chunk(2, -1)
        return DiagonalNormal(mu, log_sigma.exp())
