"""The linear-Gaussian model with any weights: all that the note writes as an integral, in closed form."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence


@final
@dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(0, I), x | z ~ N(W z + b, s2 I), so that x ~ N(b, W W^T + s2 I). In nats per datum.

    Args:
        W: [D, d]
        b: [D]
        s2: the variance of x given z, > 0
    """

    W: Float[Tensor, "D d"]
    b: Float[Tensor, " D"]
    s2: float

    @property
    def precision(self) -> Float[Tensor, "d d"]:
        """Lambda = I + W^T W / s2, the inverse covariance of p(z | x), the same for all x."""
        return torch.eye(self.W.shape[1], dtype=self.W.dtype) + self.W.T @ self.W / self.s2

    def log_prob(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """log p(x) = log N(x | b, W W^T + s2 I): the integral of (1)."""
        return self._normal(self.s2).log_prob(x)

    def cv2(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """The squared coefficient of variation of p(x | z), z ~ p(z): E[p^2] / E[p]^2 - 1.

        m draws of z estimate p(x) by (1) with a relative variance of cv2 / m, and log p(x) with a bias of nearly
        -cv2 / (2 m) once m is far above cv2. N(x | f, s2 I)^2 = (4 pi s2)^(-D/2) N(x | f, s2/2 I), whence
        E[p^2] = (4 pi s2)^(-D/2) N(x | b, W W^T + s2/2 I).
        """
        log_p2 = self._normal(self.s2 / 2).log_prob(x) - len(self.b) / 2 * math.log(4 * math.pi * self.s2)
        return torch.expm1(log_p2 - 2 * self.log_prob(x))

    def posterior(self, x: Float[Tensor, "*B D"]) -> MultivariateNormal:
        """p(z | x) = N(M^-1 W^T (x - b), s2 M^-1) with M = W^T W + s2 I = s2 Lambda."""
        mean = torch.linalg.solve(self.precision, ((x - self.b) @ self.W / self.s2)[..., None])[..., 0]
        return MultivariateNormal(mean, precision_matrix=self.precision)

    def gap(self, q: MultivariateNormal, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """log p(x) - ELBO = KL(q || p(z | x)), as in (4)."""
        return kl_divergence(q, self.posterior(x))

    def mean_field_gap(self) -> float:
        """The least gap that a diagonal q leaves: 1/2 (sum_j log Lambda_jj - log det Lambda), whatever x.

        Its mean is the posterior's and sigma_j^2 = 1 / Lambda_jj. Zero just where the columns of W are orthogonal.
        """
        return 0.5 * (self.precision.diagonal().log().sum() - self.precision.logdet()).item()

    def _normal(self, s2: float) -> LowRankMultivariateNormal:
        return LowRankMultivariateNormal(self.b, self.W, torch.full_like(self.b, s2))
