"""The distributions of one value x that torch has not, or not to the last digit, and products of them: p(x | z).

Each may be called under `torch.func.vmap`: nothing is validated, nothing is sampled inside.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid


class Product(Distribution):
    """Independent values over the last `event_dims` dimensions; as torch's Independent, but batches may be empty.

    Args:
        each: the distributions of the single values, of batch shape [..., *shape]
    """

    def __init__(self, each: Distribution, event_dims: int) -> None:
        self.each = each
        lead = len(each.batch_shape) - event_dims
        super().__init__(each.batch_shape[:lead], each.batch_shape[lead:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.each.mean

    @property
    def variance(self) -> Tensor:
        return self.each.variance

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of the values' log p, in nats: [...]."""
        return self.each.log_prob(value).flatten(-len(self.event_shape)).sum(-1)


class ProfiledNormal(Distribution):
    """N(mu, s2 I) over the last `event_dims` dimensions, at the s2 under which the data that it scores are likeliest.

    That s2 is the mean of (x - mu)^2 over all values, samples and data given to `log_prob`, on all processes. There
    d/ds2 of the mean log p is 0, so that s2 may stand as a constant: the gradient is the maximum's (envelope theorem).
    It is best for means of log p, as in the ELBO, and for nothing else: no bound with samples inside the logarithm.

    Args:
        mu: [..., *shape]
        s2: the variance where no data are given, a scalar
        observe: is told the s2 of the data, NaN where there are none, by every call of `log_prob`
    """

    def __init__(self, mu: Tensor, s2: Float[Tensor, ""], event_dims: int, observe: Callable[[Tensor], None]) -> None:
        self.mu, self.s2, self.observe = mu, s2, observe
        lead = mu.ndim - event_dims
        super().__init__(mu.shape[:lead], mu.shape[lead:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return self.s2.expand_as(self.mu)

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(value | mu, s2 I) = -||value - mu||^2 / (2 s2) - D/2 log(2 pi s2), in nats: [...]."""
        D = self.event_shape.numel()
        sse = ((self.mu - value) ** 2).flatten(-len(self.event_shape)).sum(-1)
        # s2 = 1/(V B D) sum_v sum_i ||x_i - mu_vi||^2
        s2 = mean_of_all(sse.detach()) / D
        self.observe(s2)
        return sse / (-2 * s2) - D / 2 * torch.log(2 * math.pi * s2)


def mean_of_all(values: Tensor) -> Float[Tensor, ""]:
    """The mean of the values of all processes, which may have unequally many; NaN where there are none."""
    total = torch.stack([values.sum(), values.new_full((), values.numel())])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    return total[0] / total[1]


class ContinuousBernoulli(Distribution):
    """p(x) = exp(u (2 x - 1)) u / sinh u on [0, 1], u = logits / 2 (Loaiza-Ganem & Cunningham 2019).

    torch's own clamps sigmoid(logits), which is wrong by more than rounding from logits of 16 on in float32.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """u (2 value - 1) - log(sinh u / u), in nats."""
        u, v, small = self._u()
        w = v * v
        series = w * (1 / 6 - w * (1 / 180 - w * (1 / 2835 - w / 37800)))
        # log(sinh u / u) = |u| + log((1 - exp(-2 |u|)) / (2 |u|))
        u = u.abs()
        closed = u + torch.log(-torch.expm1(-2 * u) / (2 * u))
        return self.logits * (value - 0.5) - torch.where(small, series, closed)

    @property
    def mean(self) -> Tensor:
        # 1/2 + (coth u - 1/u) / 2
        u, v, small = self._u()
        w = v * v
        series = v * (1 / 3 - w * (1 / 45 - w * (2 / 945 - w / 4725)))
        return 0.5 + 0.5 * torch.where(small, series, 1 / torch.tanh(u) - 1 / u)

    @property
    def variance(self) -> Tensor:
        # (1/u^2 - 1/sinh^2 u) / 4
        u, v, small = self._u()
        w = v * v
        series = 1 / 3 - w * (1 / 15 - w * (2 / 189 - w / 675))
        return 0.25 * torch.where(small, series, u**-2 - torch.sinh(u) ** -2)

    def _u(self) -> tuple[Tensor, Tensor, Tensor]:
        """u for the closed forms, u for their series, and where the series are meant: the closed forms are 0/0 at 0.
        What is not meant has a value that does no harm, to the gradient either."""
        u = self.logits / 2
        small = u.abs() < 0.1  # the first term that the series of log p lacks is below float64's rounding
        return torch.where(small, 1, u), torch.where(small, u, 0), small


class DiscretisedLogistic(Distribution):
    """The levels x_k = k / (levels - 1), k = 0 .. levels - 1, each with what a logistic has within half a step of it:

    P(x_k) = sigmoid((x_k + h - mu) / scale) - sigmoid((x_k - h - mu) / scale), h = 1 / (2 (levels - 1)),

    where the bins of x = 0 and x = 1 reach to infinity (Kingma et al. 2016; Salimans et al. 2017).

    Args:
        mu: [...], in units of x
        scale: of the logistic, in units of x, a scalar > 0
    """

    def __init__(self, mu: Tensor, scale: Float[Tensor, ""], levels: int) -> None:
        self.mu, self.scale, self.levels = mu, scale, levels
        super().__init__(mu.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), in nats; value is rounded to the nearest level."""
        last = self.levels - 1
        k = (value * last).round()
        step = 1 / (last * self.scale)
        lower = (k - 0.5 - last * self.mu) * step
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): nothing cancels, nothing underflows
        below = torch.where(k < last, logsigmoid(lower + step), 0)
        above = torch.where(k > 0, logsigmoid(-lower), 0)
        inside = torch.where((k > 0) & (k < last), torch.log(-torch.expm1(-step)), 0)
        return below + above + inside

    @property
    def mean(self) -> Tensor:
        return self._expectation(lambda x: x)

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return self._expectation(lambda x: (x - mean) ** 2)

    def _expectation(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """sum_k f(x_k) P(x_k), level by level: all at once would take `levels` times the memory."""
        total = torch.zeros_like(self.mu)
        for x in _grid(self.levels, self.mu):
            total = total + f(x) * self.log_prob(x).exp()
        return total


class Categorical(Distribution):
    """The levels x_k = k / (levels - 1), k = 0 .. levels - 1, with P(x_k) = softmax(logits)_k.

    Args:
        logits: [..., levels]
    """

    def __init__(self, logits: Float[Tensor, "*lead levels"]) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), in nats; value is rounded to the nearest level."""
        k = (value * (self.logits.shape[-1] - 1)).round().long()
        k = k.expand(torch.broadcast_shapes(k.shape, self.batch_shape))[..., None]
        log_p = self.logits.log_softmax(-1).expand(*k.shape[:-1], -1)
        return log_p.gather(-1, k)[..., 0]

    @property
    def mean(self) -> Tensor:
        return self.logits.softmax(-1) @ _grid(self.logits.shape[-1], self.logits)

    @property
    def variance(self) -> Tensor:
        x = _grid(self.logits.shape[-1], self.logits)
        return (self.logits.softmax(-1) * (x - self.mean[..., None]) ** 2).sum(-1)


def _grid(levels: int, like: Tensor) -> Float[Tensor, " levels"]:
    """0, 1 / (levels - 1), ..., 1."""
    return torch.linspace(0, 1, levels, dtype=like.dtype, device=like.device)
