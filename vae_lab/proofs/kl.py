"""(9)-(16): the KL between a diagonal normal and the prior."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vae_lab import distributions
from vae_lab.distributions import DiagonalNormal, FullNormal, StandardNormal, reparameterise
from vae_lab.oracles import Grid
from vae_lab.proofs.models import mean_and_error, noise
from vae_lab.proofs.row import ROUNDING, SIGMAS, Row

MU, SIGMA = (torch.tensor(v, dtype=torch.float64) for v in ([0.7, -1.2, 0.1], [0.5, 1.3, 2.0]))
LAST_DIGIT = 5e-8
"""Half of the last digit of values that are known to seven."""


def normals() -> tuple[DiagonalNormal, StandardNormal]:
    """The worked example: q = N(mu, diag(sigma^2)) and p = N(0, I) in three dimensions."""
    return DiagonalNormal(MU, SIGMA), StandardNormal(3, MU)


def densities() -> Iterator[Row]:
    """(10): the densities of q and of p, integrated over a grid, one dimension at a time."""
    grid = Grid(d=1, step=0.01, reach=25)
    for j in range(3):
        q = DiagonalNormal(MU[j : j + 1], SIGMA[j : j + 1])
        total = grid.log_integral(q.log_prob(grid.z)).exp().item()
        yield Row(f"integral of N(z | {MU[j]:g}, {SIGMA[j]:g}^2)", total, "=", 1, ROUNDING)
    total = grid.log_integral(StandardNormal(1, MU).log_prob(grid.z)).exp().item()
    yield Row("integral of N(z | 0, 1)", total, "=", 1, ROUNDING)


def worked_example() -> Iterator[Row]:
    """(9), (16): the KL of the worked example, and what sigma read as a variance would make of it."""
    q, p = normals()
    by_hand = 0.5 * sum(m**2 + s**2 - 1 - math.log(s**2) for m, s in zip(MU.tolist(), SIGMA.tolist(), strict=True))
    kl = kl_divergence(q, p).item()
    yield Row("KL(q || p), by hand", kl, "=", by_hand, ROUNDING)
    yield Row("KL(q || p), known value", kl, "=", 2.1776357, LAST_DIGIT)
    summed = distributions.kl_per_dimension(q, p).sum().item()
    yield Row("KL(q || p), summed over its dimensions", summed, "=", by_hand, ROUNDING)
    misread = kl_divergence(DiagonalNormal(MU, SIGMA.sqrt()), p).item()
    yield Row("KL where cov = diag(sigma), as the note says", misread, "=", 1.2388, 5e-5)
    yield Row("... is not the KL", misread, "!=", by_hand, ROUNDING)
    full = kl_divergence(FullNormal(MU, SIGMA.diag()), p).item()
    yield Row("KL(q || p), q as a full normal", full, "=", by_hand, ROUNDING)


def two_integrals() -> Iterator[Row]:
    """(9), (11)-(15): I1 = E_q log q and I2 = E_q log p, by quadrature of the densities."""
    grid, (I1, I2, J) = Grid(d=1, step=0.01, reach=25), (0.0, 0.0, 0.0)
    for j in range(3):
        q, p = DiagonalNormal(MU[j : j + 1], SIGMA[j : j + 1]), StandardNormal(1, MU)
        log_q, log_p = q.log_prob(grid.z), p.log_prob(grid.z)
        I1 += grid.integral(log_q.exp() * log_q).item()
        I2 += grid.integral(log_q.exp() * log_p).item()
        J += grid.integral(log_q.exp() * grid.z[:, 0] ** 2).item()
    moments = (SIGMA**2 + MU**2).sum().item()
    log_2pi = math.log(2 * math.pi)
    yield Row("J / ((2 pi)^(d/2) prod sigma) = sum_j sigma_j^2 + mu_j^2 (13)", J, "=", moments, ROUNDING)
    yield Row(
        "I2 = -d/2 log 2 pi - 1/2 sum_j (sigma_j^2 + mu_j^2) (14)", I2, "=", -1.5 * log_2pi - moments / 2, ROUNDING
    )
    by_hand = -1.5 * log_2pi - 0.5 * (1 + 2 * SIGMA.log()).sum().item()
    yield Row("I1 = -d/2 log 2 pi - 1/2 sum_j (1 + log sigma_j^2) (15)", I1, "=", by_hand, ROUNDING)
    yield Row("I1, known value", I1, "=", -4.5191799, LAST_DIGIT)
    yield Row("I2, known value", I2, "=", -6.6968156, LAST_DIGIT)
    normaliser = (2 * math.pi) ** 1.5
    printed = math.log(1 / normaliser - 1 / (2 * normaliser * SIGMA.prod().item()))
    yield Row("I2 as the last line of (12) prints it", printed, "=", -3.2423, 5e-5)
    yield Row("... is not I2", printed, "!=", I2, ROUNDING)
    q_, p_ = normals()
    yield Row("I1 - I2 = KL(q || p)", I1 - I2, "=", kl_divergence(q_, p_).item(), ROUNDING)


def by_sampling() -> Iterator[Row]:
    """(16): the mean of log q(z) - log p(z) over 200,000 samples of q."""
    p = StandardNormal(3, MU)
    L = torch.tensor([[0.5, 0, 0], [-0.8, 1.3, 0], [0.3, 0.9, 2.0]], dtype=torch.float64)
    for name, q in {"diagonal": DiagonalNormal(MU, SIGMA), "full": FullNormal(MU, L)}.items():
        z: Tensor = reparameterise(q, noise(200_000, 3, key="kl"))
        mean, error = mean_and_error(q.log_prob(z) - p.log_prob(z))
        yield Row(f"KL by samples, {name} q", mean.item(), "=", kl_divergence(q, p).item(), SIGMAS * error.item())
