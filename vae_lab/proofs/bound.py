"""(3)-(8), Definition 1: log p(x) = ELBO + KL(q || posterior), for any q."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vae_lab.data.sampling import Shuffled, WithReplacement
from vae_lab.distributions import StandardNormal
from vae_lab.evaluation.drawbacks import refit_time, untouched
from vae_lab.interfaces import Batch
from vae_lab.objectives import Elbo
from vae_lab.oracles import Grid, LinearGaussian
from vae_lab.proofs import models
from vae_lab.proofs.models import (
    Curve,
    Given,
    Sheet,
    batch_of,
    bent,
    example,
    free,
    linear,
    mean_and_error,
    mlp,
    noise,
    sigma_points,
    stream,
)
from vae_lab.proofs.row import ROUNDING, SIGMAS, Row
from vae_lab.vae import VAE


@torch.no_grad()
def exact_elbo(vae: VAE, x: Tensor) -> Tensor:
    """The ELBO of a linear-Gaussian model, without an error of sampling: [B]."""
    return Elbo(2 * vae.d)(vae, batch_of(x), sigma_points(vae.d, len(x))).elbo


def identity() -> Iterator[Row]:
    """(3), (4): log p = ELBO + KL(q || posterior), q with a full covariance, far from the posterior or near to it."""
    model, x = example()
    D, d = model.W.shape
    posterior = model.posterior(x)
    far = noise(len(x), d, key="far"), noise(d, d, key="far L").tril(-1) + torch.eye(d, dtype=x.dtype) / 2
    near = posterior.mean + 0.1, model.posterior(x[0]).scale_tril
    for name, (mu, L) in {"far from": far, "near": near}.items():
        q = MultivariateNormal(mu, scale_tril=L)
        elbo = exact_elbo(linear(model, Given((D,), mu, L)), x)
        gap = model.gap(q, x)
        worst = (elbo + gap - model.log_prob(x)).abs().max().item()
        yield Row(f"|log p - ELBO - KL(q || posterior)|, q {name} it: KL {gap.mean():.3g}", worst, "=", 0, ROUNDING)


def lower_bound() -> Iterator[Row]:
    """Definition 1, (5): ELBO <= log p for every q; equality at the posterior."""
    model, x = example()
    D, d = model.W.shape
    least = float("inf")
    for i in range(200):
        mu, L = 2 * noise(len(x), d, key=f"any {i}"), noise(d, d, key=f"any L {i}")
        L = L.tril(-1) + L.diagonal().exp().diag()
        least = min(least, (model.log_prob(x) - exact_elbo(linear(model, Given((D,), mu, L)), x)).min().item())
    yield Row("least log p - ELBO of 1000 pairs of x and q", least, ">=", 0, 0)
    posterior = model.posterior(x)
    tight = exact_elbo(linear(model, Given((D,), posterior.mean, posterior.scale_tril[0])), x)
    worst = (model.log_prob(x) - tight).abs().max().item()
    yield Row("|log p - ELBO| at q = the posterior", worst, "=", 0, ROUNDING)


def least_gap() -> Iterator[Row]:
    """(5): a diagonal q leaves a gap; the least, found by fitting q, is 1/2 (sum log Lambda_jj - log det Lambda)."""
    model, x = example()
    orthogonal = LinearGaussian(
        torch.linalg.qr(model.W)[0] * torch.tensor([2.0, 0.7], dtype=x.dtype), model.b, model.s2
    )
    for name, m in {"any W": model, "orthogonal columns": orthogonal}.items():
        elbo = fitted(linear(m, free(0 * x[:, :2], 1 + 0 * x[:, :2], (4,))), x, sigma_points(2, len(x)))
        gap = (m.log_prob(x) - elbo).mean().item()
        yield Row(f"least gap of a diagonal q, {name}", gap, "=", m.mean_field_gap(), 1e-8)
    yield Row("... with orthogonal columns, 0", orthogonal.mean_field_gap(), "=", 0, ROUNDING)
    yield Row("... with any W, above 0", model.mean_field_gap(), "!=", 0, ROUNDING)


def free_optimum() -> Iterator[Row]:
    """(6): phi_i fitted by itself finds mu_i = M^-1 W^T (x_i - b), sigma_j^2 = s2 / M_jj, M = W^T W + s2 I."""
    model, x = example()
    vae = linear(model, free(0 * x[:, :2], 1 + 0 * x[:, :2], (4,)))
    fitted(vae, x, sigma_points(2, len(x)))
    with torch.no_grad():
        q = vae.encoder(batch_of(x))
    M = model.W.T @ model.W + model.s2 * torch.eye(2, dtype=x.dtype)
    mu = torch.linalg.solve(M, model.W.T @ (x - model.b).T).T
    sigma = (model.s2 / M.diagonal()).sqrt()
    # the optimum is flat: an ELBO right to 1e-12 leaves 1e-6 of mu
    yield Row("largest error of mu_i", (q.mean - mu).abs().max().item(), "=", 0, 1e-6)
    yield Row("largest error of sigma_i", (q.variance.sqrt() - sigma).abs().max().item(), "=", 0, 1e-6)


def drawbacks() -> Iterator[Row]:
    """(6): of n phi_i, n draws i ~ U(1, ..., n) leave (1 - 1/n)^n untouched, nearly 1/e, and a shuffled epoch none; and
    a new datum needs a fit, not one pass of an encoder."""
    n = 1000
    p = (1 - 1 / n) ** n
    # the number of empty boxes, n balls in n boxes: the exact variance of its share
    variance = p / n + (1 - 1 / n) * (1 - 2 / n) ** n - p**2
    share = untouched(n, WithReplacement(50, 50, 1), stream("with replacement"))
    yield Row("share untouched, with replacement", share, "=", p, SIGMAS * variance**0.5)
    share = untouched(n, Shuffled(50, 50, 1), stream("shuffled"))
    yield Row("share untouched, shuffled", share, "=", 0, 0)
    refit, forward = refit_time(mlp(4, 2), noise(1, 4, key="x"), steps=100, repeats=3)
    yield Row("seconds to fit a new datum in 100 steps, against a pass", refit, ">=", forward, 0)


def amortised() -> Iterator[Row]:
    """(7), (8): an encoder shared by all x reaches no more than free phi_i, and these no more than log p."""
    f, eps = Curve(), noise(256, 5, 1, key="amortised")
    z = torch.tensor([[-1.5], [-0.4], [0.3], [1.0], [1.8]], dtype=torch.float64)
    x = f(z) + 0.1**0.5 * noise(5, 3, key="amortised x")
    alone = bent(f, [[0.0]] * 5, [[1.0]] * 5)
    none = torch.zeros(1, dtype=torch.float64)
    shared = VAE(models.amortised(none.expand(1, 3), none, none + 1), f, alone.likelihood, alone.prior)
    reached = fitted(shared, x, eps)
    with torch.no_grad():  # phi_i begin where the shared encoder ended
        q = shared.encoder(batch_of(x))
        alone = VAE(free(q.mean, q.variance.sqrt(), (3,)), f, alone.likelihood, alone.prior)
    elbo, log_p = fitted(alone, x, eps), on_grid(alone, x, Grid(1, 1e-3))[0]
    yield Row("ELBO, a linear encoder fitted to five x", reached.sum().item(), "<=", elbo.sum().item(), 0)
    exact = expected_elbo(alone, x, Grid(1, 1e-3))
    yield Row("ELBO, free phi_i (by quadrature)", exact.sum().item(), "<=", log_p.sum().item(), 0)


def curve() -> Iterator[Row]:
    """(1), (4): a model that is not linear, its one latent dimension integrated on a grid."""
    vae, x = bent(Curve(), [[1.0]], [[0.5]]), torch.tensor([[0.5, 0.8, 0.6]], dtype=torch.float64)
    grid = Grid(1, 1e-3)
    log_p, gap = on_grid(vae, x, grid)
    elbo = expected_elbo(vae, x, grid)
    with torch.no_grad():
        kl = kl_divergence(vae.encoder(batch_of(x)), vae.p_z())
    yield Row("log p, known value", log_p.item(), "=", -2.0211260, 5e-8)
    yield Row("ELBO, known value", elbo.item(), "=", -3.2444195, 5e-8)
    yield Row("KL(q || p), known value", kl.item(), "=", 0.8181472, 5e-8)
    yield Row("ELBO + KL(q || posterior)", (elbo + gap).item(), "=", log_p.item(), 1e-9)
    yield from sampled(vae, x, elbo)


def sheet() -> Iterator[Row]:
    """(1), (4): the same in two latent dimensions, on two grids."""
    vae, x = bent(Sheet(), [[0.3, -0.6]], [[0.4, 0.7]]), torch.tensor([[0.2, -0.3, 0.4, 0.7]], dtype=torch.float64)
    fine, coarse = (on_grid(vae, x, Grid(2, step, reach=8))[0].item() for step in (0.02, 0.04))
    yield Row("log p on a grid of step 0.02", fine, "=", coarse, ROUNDING)
    grid = Grid(2, 0.02, reach=8)
    log_p, gap = on_grid(vae, x, grid)
    elbo = expected_elbo(vae, x, grid)
    yield Row("ELBO + KL(q || posterior)", (elbo + gap).item(), "=", log_p.item(), 1e-9)
    yield from sampled(vae, x, elbo)


def sampled(vae: VAE, x: Tensor, exact: Tensor) -> Iterator[Row]:
    """(19): the objective's own ELBO of 100,000 samples."""
    n = 100_000
    with torch.no_grad():
        many = Batch(x.expand(n, -1), torch.zeros(n, dtype=torch.long))
        mean, error = mean_and_error(Elbo(1)(vae, many, noise(1, n, vae.d, key="sampled")).elbo)
    yield Row("ELBO by samples", mean.item(), "=", exact.item(), SIGMAS * error.item())


@torch.no_grad()
def on_grid(vae: VAE, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """log p(x) and KL(q || posterior), by quadrature: [B] each."""
    log_joint = vae.p_x(grid.z[:, None]).log_prob(x) + vae.p_z().log_prob(grid.z[:, None])  # [N, B]
    log_p = grid.log_integral(log_joint)
    log_q = vae.encoder(batch_of(x)).log_prob(grid.z[:, None])
    return log_p, grid.integral(log_q.exp() * (log_q - log_joint + log_p))


@torch.no_grad()
def expected_elbo(vae: VAE, x: Tensor, grid: Grid) -> Tensor:
    """E_q log p(x | z), by quadrature, minus the KL (16): [B]."""
    q = vae.encoder(batch_of(x))
    z = grid.z[:, None]
    rec = grid.integral(q.log_prob(z).exp() * vae.p_x(z).log_prob(x))
    return rec - kl_divergence(q, StandardNormal(vae.d, x))


def fitted(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Climbs the ELBO of these data and this noise, the decoder being what it is; what is reached: [B]."""
    parameters = list(vae.encoder.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        loss = Elbo(len(eps))(vae, batch_of(x), eps).loss.sum()
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g.to_dense() if g.is_sparse else g
        return loss

    step: Callable[[Callable[[], Tensor]], Tensor] = optimizer.step
    step(closure)
    with torch.no_grad():
        return Elbo(len(eps))(vae, batch_of(x), eps).elbo
