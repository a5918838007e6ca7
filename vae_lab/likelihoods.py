"""p(x | z) given eta = f(z), each with its full normaliser, so that scores at different s2 stand on one axis."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import Normal, constraints
from torch.nn.functional import softplus

from vae_lab import densities
from vae_lab.checks import flag, number, whole, wholes
from vae_lab.densities import Product, ProfiledNormal
from vae_lab.distributions import IsotropicNormal, ProductBernoulli
from vae_lab.interfaces import Likelihood
from vae_lab.levels import Levels

# Normals


@final
class Gaussian(Likelihood):
    """N(x | eta, s2 I), as in (8).

    Args:
        shape: of one datum
        s2: the variance, > 0, the same for every value
    """

    support = constraints.real
    s2: Tensor

    def __init__(self, shape: Sequence[int], s2: float) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape))
        self.register_buffer("s2", torch.tensor(number("s2", s2, above=0)))

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> IsotropicNormal:
        return IsotropicNormal(eta, self.s2, len(self.shape))


@final
class GaussianLearned(Likelihood):
    """N(x | eta, diag(s2)) with s2 a parameter, learned by its logarithm: one for all values, or one for each channel.

    The optimiser moves it slowly where its gradient is small; `GaussianOptimal` has the same optimum at once.

    Args:
        shape: of one datum
        s2: the variance at the beginning, > 0
        per_channel: whether each channel of [C, H, W] has a variance of its own
    Raises:
        ValueError: if data that are no images are to have channels.
    """

    support = constraints.real

    def __init__(self, shape: Sequence[int], s2: float, per_channel: bool) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape))
        self.per_channel = flag("per_channel", per_channel)
        if per_channel and len(self.shape) != 3:
            raise ValueError(f"per_channel must be false where data are not [C, H, W], got data {list(self.shape)}")
        log_s2 = torch.tensor(number("s2", s2, above=0)).log()
        self.log_s2 = nn.Parameter(log_s2.repeat(self.shape[0], 1, 1) if per_channel else log_s2)

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> IsotropicNormal | Product:
        if self.per_channel:
            return Product(Normal(eta, (self.log_s2 / 2).exp(), validate_args=False), len(self.shape))
        return IsotropicNormal(eta, self.log_s2.exp(), len(self.shape))


@final
class GaussianOptimal(Likelihood):
    """N(x | eta, s2 I) at the best s2, in closed form: s2 = E_q ||x - eta||^2 / D (Rybkin et al. 2021).

    In training mode each batch is scored at its own best s2, over all processes, which a moving average remembers; in
    evaluation mode that average is s2. Only objectives that are linear in log p(x | z) are maximised so.

    Stacked models work under `torch.func.vmap`, where buffers are stacked too and `log_prob` is called inside, and in
    training mode by one process alone: the average is written in place.

    Args:
        shape: of one datum
        rate: the weight of the latest batch in the moving average, > 0 and <= 1
    """

    support = constraints.real
    s2: Tensor
    weight: Tensor

    def __init__(self, shape: Sequence[int], rate: float) -> None:
        super().__init__()
        self.shape, self.rate = tuple(wholes("shape", shape)), number("rate", rate, above=0, most=1)
        self.register_buffer("s2", torch.ones(()))
        self.register_buffer("weight", torch.zeros(()))  # of all batches so far; the rest was never seen

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> ProfiledNormal | IsotropicNormal:
        if self.training:
            return ProfiledNormal(eta, self.s2, len(self.shape), self.observe)
        return IsotropicNormal(eta, self.s2, len(self.shape))

    def observe(self, s2: Float[Tensor, ""]) -> None:
        """Takes a batch's s2 into the average, which is that of the batches seen from the first on; NaN: no batch."""
        weight = self.weight + self.rate * (1 - self.weight)
        average = self.s2 + self.rate / weight * (s2 - self.s2)
        self.s2.copy_(torch.where(s2.isnan(), self.s2, average))
        self.weight.copy_(torch.where(s2.isnan(), self.weight, weight))


@final
class GaussianPerPixel(Likelihood):
    """N(x | mu, diag(s2)), both made by the decoder: eta = (mu, h) and s2 = floor + log(1 + exp(h)).

    Values that are the same in all data, as at the edges of images, would draw s2 to 0 and log p to infinity: they
    are why there is a floor.

    Args:
        shape: of one datum
        floor: the least variance, > 0
    """

    outputs = 2
    support = constraints.real

    def __init__(self, shape: Sequence[int], floor: float) -> None:
        super().__init__()
        self.shape, self.floor = tuple(wholes("shape", shape)), number("floor", floor, above=0)

    def forward(self, eta: Float[Tensor, "*lead_2_shape"]) -> Product:
        mu, h = eta.unbind(-1 - len(self.shape))
        s2 = self.floor + softplus(h)
        return Product(Normal(mu, s2.sqrt(), validate_args=False), len(self.shape))


# Other densities


@final
class Laplace(Likelihood):
    """Laplace(x | eta, scale): log p = -|x - eta| / scale - log(2 scale), summed over the values.

    Args:
        shape: of one datum
        scale: the mean of |x - eta|, > 0, the same for every value
    """

    support = constraints.real
    scale: Tensor

    def __init__(self, shape: Sequence[int], scale: float) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape))
        self.register_buffer("scale", torch.tensor(number("scale", scale, above=0)))

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> Product:
        return Product(TorchLaplace(eta, self.scale, validate_args=False), len(self.shape))


@final
class ContinuousBernoulli(Likelihood):
    """The density on [0, 1] that is proportional to Bernoulli(x | sigmoid(eta)) (Loaiza-Ganem & Cunningham 2019).

    Args:
        shape: of one datum
    """

    support = constraints.unit_interval

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape))

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> Product:
        return Product(densities.ContinuousBernoulli(eta), len(self.shape))


# Probabilities


@final
class Bernoulli(Likelihood):
    """Bernoulli(x | sigmoid(eta)), one for each value (KW13, appendix C.1). x may be grey: log p is linear in it.

    Args:
        shape: of one datum
    """

    support = constraints.unit_interval
    grid = constraints.boolean

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape))

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> ProductBernoulli:
        return ProductBernoulli(eta, len(self.shape))


@final
class DiscretisedLogistic(Likelihood):
    """Each level of x has what a logistic around eta has within half a step of it (Kingma et al. 2016). The scale is
    one parameter for all values, learned by its logarithm.

    Args:
        shape: of one datum
        scale: of the logistic at the beginning, > 0, in units of x
        levels: how many values 0, 1/(levels - 1), ..., 1 there are
    """

    def __init__(self, shape: Sequence[int], scale: float, levels: int) -> None:
        super().__init__()
        self.shape, self.levels = tuple(wholes("shape", shape)), whole("levels", levels, least=2)
        self.support = self.grid = Levels(levels)
        self.log_scale = nn.Parameter(torch.tensor(number("scale", scale, above=0)).log())

    def forward(self, eta: Float[Tensor, "*lead_shape"]) -> Product:
        return Product(densities.DiscretisedLogistic(eta, self.log_scale.exp(), self.levels), len(self.shape))


@final
class Categorical(Likelihood):
    """P(level k of x) = softmax(eta)_k, with nothing assumed about neighbouring levels (van den Oord et al. 2016).

    Args:
        shape: of one datum
        levels: how many values 0, 1/(levels - 1), ..., 1 there are
    """

    def __init__(self, shape: Sequence[int], levels: int) -> None:
        super().__init__()
        self.shape, self.outputs = tuple(wholes("shape", shape)), whole("levels", levels, least=2)
        self.support = self.grid = Levels(levels)

    def forward(self, eta: Float[Tensor, "*lead_levels_shape"]) -> Product:
        return Product(densities.Categorical(eta.movedim(-1 - len(self.shape), -1)), len(self.shape))
