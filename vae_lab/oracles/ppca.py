"""Probabilistic PCA: what the best linear VAE of given data reaches, from their covariance."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.checks import number, whole

CHUNK = 4096  # data at a time, so that float64 copies stay small


@final
@dataclass(frozen=True)
class PPCA:
    """Probabilistic PCA, the optimum of a VAE whose encoder and decoder are linear and whose p(x | z) is Gaussian.

    With the data's covariance eigenvalues lambda_1 >= ... >= lambda_D, the best model of d latent dimensions and
    variance s2 keeps the first k = min(d, #{lambda_j > s2}) and is N(x | b, W W^T + s2 I) (Tipping & Bishop 1999,
    section 3.2 and appendix A). Its posterior is a diagonal normal with one sigma for all x, so that the linear VAE's
    ELBO reaches log p (Lucas et al. 2019, section 4.1). Nats per datum; averages are over the data it was made from.

        ppca = PPCA.of(x)
        s2 = ppca.best_s2(d=20)
        ppca.log_p(d=20, s2=s2), ppca.rate(d=20, s2=s2), ppca.log_prob(x_test, d=20, s2=s2).mean()

    Args:
        mean: [D]
        eigenvalues: of the covariance (1/N), descending: [D]
        eigenvectors: one a column: [D, D]
    """

    mean: Float[Tensor, " D"]
    eigenvalues: Float[Tensor, " D"]
    eigenvectors: Float[Tensor, "D D"]

    @classmethod
    def of(cls, x: Float[Tensor, "N *shape"]) -> "PPCA":
        """From the data, as the model sees them; takes D^2 memory and N D^2 + D^3 time."""
        parts = x.flatten(1).split(CHUNK)
        mean = sum((_exact(part).sum(0) for part in parts), torch.zeros(())) / len(x)
        centred = (_exact(part) - mean for part in parts)
        covariance = sum((part.T @ part for part in centred), torch.zeros(())) / len(x)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)  # ascending; rounding may leave a 0 below 0
        return cls(mean, eigenvalues.flip(0).clamp(min=0), eigenvectors.flip(1))

    def best_s2(self, d: int) -> float:
        """The maximum-likelihood s2 = the mean of the D - d discarded eigenvalues (Tipping & Bishop 1999, (8)).

        Raises:
            ValueError: if d dimensions hold all of the data's variance: the likelihood then has no maximum.
        """
        rank = int((self.eigenvalues > len(self.mean) * self.eigenvalues[0] * torch.finfo(torch.float64).eps).sum())
        if whole("d", d) >= rank:
            raise ValueError(f"d must be below {rank}, the dimensions that the data have, got {d}")
        return self.eigenvalues[d:].mean().item()

    def k(self, d: int, s2: float) -> int:
        """How many latent dimensions the model uses: min(d, #{lambda_j > s2}). The others collapse onto the prior."""
        return len(self._kept(d, s2)[0])

    def log_p(self, d: int, s2: float) -> float:
        """The largest mean log p(x) at this s2; with lambda_j > s2 for all j <= k (Tipping & Bishop 1999, (3), (7)):

        -1/2 {D log 2 pi + sum_{j<=k} log lambda_j + k + (D - k) log s2 + sum_{j>k} lambda_j / s2}
        """
        kept, rest = self._kept(d, s2)
        D, k = len(self.mean), len(kept)
        log_det = kept.log().sum().item() + (D - k) * math.log(s2)
        return -0.5 * (D * math.log(2 * math.pi) + log_det + k + rest.sum().item() / s2)

    def rate(self, d: int, s2: float) -> float:
        """The mean KL(q(z | x) || p(z)) = 1/2 sum_{j<=k} log(lambda_j / s2), from the exact posterior."""
        return 0.5 * (self._kept(d, s2)[0] / s2).log().sum().item()

    def distortion(self, d: int, s2: float) -> float:
        """The mean E_q ||x - f(z)||^2 = k s2 + sum_{j>k} lambda_j, in squared units of x.

        log p = -distortion / (2 s2) - D/2 log(2 pi s2) - rate; as a curve over s2 with d >= k it is Shannon's rate
        and distortion of a Gaussian source (reverse water-filling, with s2 as the water level).
        """
        kept, rest = self._kept(d, s2)
        return len(kept) * s2 + rest.sum().item()

    def active_units(self, d: int, s2: float, above: float = 0.01) -> int:
        """How many latent units have A_j = Var_x(E_q[z_j | x]) = 1 - s2 / lambda_j > `above` (Burda et al. 2016)."""
        return int((1 - s2 / self._kept(d, s2)[0] > above).sum())

    def log_prob(self, x: Float[Tensor, "N *shape"], d: int, s2: float) -> Float[Tensor, " N"]:
        """log N(x | b, W W^T + s2 I) of each datum, held out or not, under the model of these d and s2."""
        kept, rest = self._kept(d, s2)
        variances = torch.cat([kept, torch.full_like(rest, s2)])  # along the eigenvectors
        normaliser = (2 * math.pi * variances).log().sum()
        parts = ((_exact(part) - self.mean) @ self.eigenvectors for part in x.flatten(1).split(CHUNK))
        return -0.5 * torch.cat([(part**2 / variances).sum(1) + normaliser for part in parts])

    def decoder(self, d: int, s2: float) -> tuple[Float[Tensor, "D d"], Float[Tensor, " D"]]:
        """W and b of f(z) = W z + b: W = U_k (Lambda_k - s2)^(1/2), then d - k columns of zeros; b the data's mean.

        The best W up to a rotation (Tipping & Bishop 1999, (7)), and the one whose posterior is diagonal.
        """
        kept, _ = self._kept(d, s2)
        W = self.mean.new_zeros(len(self.mean), d)
        W[:, : len(kept)] = self.eigenvectors[:, : len(kept)] * (kept - s2).sqrt()
        return W, self.mean

    def encoder(self, d: int, s2: float) -> tuple[Float[Tensor, "d D"], Float[Tensor, " d"], Float[Tensor, " d"]]:
        """A, a and sigma of the exact posterior p(z | x) = N(z | A x + a, diag(sigma^2)), given `decoder`'s W and b.

        With M = W^T W + s2 I, which is diagonal: A = M^-1 W^T, a = -A b, sigma_j^2 = s2 / M_jj.
        """
        W, b = self.decoder(d, s2)
        M = (W**2).sum(0) + s2  # [d]
        A = W.T / M[:, None]
        return A, -A @ b, (s2 / M).sqrt()

    def _kept(self, d: int, s2: float) -> tuple[Tensor, Tensor]:
        """The eigenvalues that a model of these d and s2 keeps [k], and the others [D - k]."""
        number("s2", s2, above=0)
        k = min(whole("d", d), int((self.eigenvalues > s2).sum()))
        return self.eigenvalues[:k], self.eigenvalues[k:]


def _exact(x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    return x.to("cpu", torch.float64)  # Apple's GPU has no float64
