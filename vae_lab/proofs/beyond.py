"""Beyond the note: importance weighted bounds and their gradients, probabilistic PCA, the best s2, annealing."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vae_lab.evaluation.annealing import ais, bdmc, simulate
from vae_lab.evaluation.estimators import importance
from vae_lab.likelihoods import GaussianOptimal
from vae_lab.objectives import Elbo, Iwae
from vae_lab.oracles import PPCA, Grid, LinearGaussian
from vae_lab.proofs.bound import on_grid
from vae_lab.proofs.models import (
    Curve,
    Sheet,
    amortised,
    batch_of,
    bent,
    example,
    free,
    gaussian,
    linear,
    mean_and_error,
    noise,
    parameter_gradients,
    phi_gradients,
    sigma_points,
    stream,
)
from vae_lab.proofs.row import ROUNDING, SIGMAS, Row
from vae_lab.vae import VAE


def weighted_bound() -> Iterator[Row]:
    """IWAE_K lies between the ELBO and log p, and grows with K (Burda et al. 2016, theorem 1)."""
    vae, x = bent(Curve(), [[1.0]], [[0.5]]), torch.tensor([[0.5, 0.8, 0.6]], dtype=torch.float64)
    R, last = 20_000, None
    many = batch_of(x.expand(R, -1))._replace(index=torch.zeros(R, dtype=torch.long))
    for K in (1, 5, 25):
        with torch.no_grad():
            draws = -Iwae(K)(vae, many, noise(K, R, 1, key=f"K={K}")).loss
        mean, error = mean_and_error(draws)
        if last is not None:
            spread = (error**2 + last[1] ** 2).sqrt()
            yield Row(f"IWAE_{K}, above a smaller K's", mean.item(), ">=", last[0].item() + SIGMAS * spread.item(), 0)
        last = mean, error
        yield Row(f"IWAE_{K}, below log p", mean.item(), "<=", -2.0211260, SIGMAS * error.item())


def importance_sampling() -> Iterator[Row]:
    """log p by 400,000 weighted samples of q, against quadrature."""
    grids = Grid(1, 1e-3), Grid(2, 0.02, reach=8)
    cases = [
        (bent(Curve(), [[0.8]], [[0.9]]), [[0.5, 0.8, 0.6]]),
        (bent(Sheet(), [[0.3, -0.6]], [[0.9, 1.1]]), [[0.2, -0.3, 0.4, 0.7]]),
    ]
    for grid, (vae, values) in zip(grids, cases, strict=True):
        x = torch.tensor(values, dtype=torch.float64)
        [log_p], [error], _ = importance(vae, batch_of(x), 400_000, stream("importance"))
        exact = on_grid(vae, x, grid)[0].item()
        yield Row(f"log p, d={vae.d}, K=400000", log_p.item(), "=", exact, SIGMAS * error.item())


def toy(off: float, n: int) -> tuple[LinearGaussian, Tensor, Tensor, Tensor]:
    """Two Gaussian dimensions, and a q whose mean and width are wrong (after Rainforth et al. 2018)."""
    x = torch.tensor([1.0, -0.5], dtype=torch.float64)
    model = LinearGaussian(torch.eye(2, dtype=x.dtype), torch.full((2,), 0.3, dtype=x.dtype), 1.0)
    mu, sigma = model.posterior(x).mean + off, torch.full((2,), (2 / 3) ** 0.5, dtype=x.dtype)
    return model, x, mu.expand(n, 2), sigma.expand(n, 2)


def signal_to_noise() -> Iterator[Row]:
    """The signal-to-noise ratio |mean| / deviation of a gradient over K samples goes as K^-1/2 for the encoder under
    IWAE, as K^+1/2 for the decoder (Rainforth et al. 2018), and as K^+1/2 for the encoder under DReG (Tucker et al.
    2019)."""

    def encoders_ratio(gradient: str, R: int) -> Callable[[int], Tensor]:
        def at(K: int) -> Tensor:
            model, x, mu, sigma = toy(0.4, R)
            vae = linear(model, free(mu, sigma, (2,)))
            eps = noise(K, R, 2, key=f"snr {K}")
            return ratio(phi_gradients(vae, Iwae(K, gradient=gradient), batch_of(x.expand(R, 2)), eps)[:, :2])

        return at

    def decoders_ratio(K: int) -> Tensor:
        R = 4000
        model, x, mu, sigma = toy(0.4, 1)
        vae = linear(model, amortised(0 * model.W, mu[0], sigma[0]))
        eps = noise(R, K, 1, 2, key=f"snr {K}")
        return ratio(parameter_gradients(vae, Iwae(K), x.expand(R, 1, 2), eps)["decoder.f.bias"])

    small, large = [8, 16, 32, 64, 128, 256], [32, 64, 128, 256, 512]
    yield Row("slope of the encoder's, IWAE", slope(encoders_ratio("plain", 30_000), small), "=", -0.5, 0.12)
    yield Row("slope of the encoder's, DReG", slope(encoders_ratio("dreg", 4000), large), "=", 0.5, 0.05)
    yield Row("slope of the decoder's, IWAE", slope(decoders_ratio, large), "=", 0.5, 0.05)


def ratio(draws: Tensor) -> Tensor:
    """|mean| / deviation of each component, and their mean."""
    return (draws.mean(0).abs() / draws.std(0)).mean()


def slope(at: Callable[[int], Tensor], Ks: list[int]) -> float:
    """Of log at(K) over log K, by least squares."""
    k, y = torch.tensor(Ks, dtype=torch.float64).log(), torch.stack([at(K) for K in Ks]).log()
    k -= k.mean()
    return (k @ y / (k @ k)).item()


def same_means() -> Iterator[Row]:
    """The encoder's gradient under IWAE_8 has the same mean, plain or DReG; under the ELBO, plain or STL."""
    R = 100_000
    model, x, mu, sigma = toy(0.4, R)
    vae, batch = linear(model, free(mu, sigma, (2,))), batch_of(x.expand(R, 2))
    pairs = {
        "IWAE_8: DReG - plain": (8, Iwae(8, gradient="dreg"), Iwae(8)),
        "ELBO: STL - plain": (1, Elbo(1, kl="monte_carlo", gradient="stl"), Elbo(1, kl="monte_carlo")),
        "ELBO: closed KL - sampled KL": (1, Elbo(1), Elbo(1, kl="monte_carlo")),
    }
    for name, (samples, a, b) in pairs.items():
        eps = noise(samples, R, 2, key=name)
        mean, error = mean_and_error(phi_gradients(vae, a, batch, eps) - phi_gradients(vae, b, batch, eps))
        worst = (mean.abs() / error).max().item()  # in standard errors, of four components
        yield Row(f"{name}, in standard errors", worst, "<=", SIGMAS, 0)


def best_linear(s2: float | None = None) -> tuple[PPCA, VAE, Tensor, float]:
    """PPCA of 200 data of six values, d = 3, and the VAE with its weights."""
    D, d = 6, 3
    x = noise(200, D, key="ppca x") * torch.logspace(-1, 0.5, D, dtype=torch.float64) @ noise(D, D, key="ppca mix") + 1
    ppca = PPCA.of(x)
    s2 = ppca.best_s2(d) if s2 is None else s2
    (W, b), (A, a, sigma) = ppca.decoder(d, s2), ppca.encoder(d, s2)
    return ppca, linear(LinearGaussian(W, b, s2), amortised(A, a, sigma)), x, s2


def ppca() -> Iterator[Row]:
    """At a linear VAE's optimum the ELBO is log p, rate and distortion are known, and no gradient is left."""
    ppca, vae, x, s2 = best_linear()
    batch, eps = batch_of(x), sigma_points(3, len(x))
    with torch.no_grad():
        terms = Elbo(6)(vae, batch, eps)
        worst = (terms.elbo - ppca.log_prob(x, 3, s2)).abs().max().item()
        yield Row("|ELBO - log p|, any x", worst, "=", 0, ROUNDING)
        yield Row("mean ELBO", terms.elbo.mean().item(), "=", ppca.log_p(3, s2), ROUNDING)
        yield Row("mean KL = 1/2 sum log(lambda_j / s2)", terms.kl.mean().item(), "=", ppca.rate(3, s2), ROUNDING)
        D, distortion = x.shape[1], ppca.distortion(3, s2)
        rec = -distortion / (2 * s2) - D / 2 * math.log(2 * math.pi * s2)
        yield Row("mean rec, by the distortion k s2 + sum lambda_j", terms.rec.mean().item(), "=", rec, ROUNDING)
        yield Row("best s2 = distortion / D", s2, "=", distortion / D, ROUNDING)
    loss = Elbo(6)(vae, batch, eps).loss.mean()
    largest = max(g.abs().max().item() for g in torch.autograd.grad(loss, list(vae.parameters())))
    yield Row("largest entry of the gradient", largest, "=", 0, 1e-8)


def exact_posterior() -> Iterator[Row]:
    """At q = the posterior the weights are constant: IWAE_K = ELBO for all K and any noise, and STL's gradient is 0."""
    ppca, vae, x, s2 = best_linear(s2=0.3)
    log_p = ppca.log_prob(x, 3, s2)
    for K in (1, 5, 50):
        eps = noise(K, len(x), 3, key=f"posterior {K}")
        with torch.no_grad():
            worst = (-Iwae(K)(vae, batch_of(x), eps).loss - log_p).abs().max().item()
        yield Row(f"|IWAE_{K} - log p|, any x", worst, "=", 0, ROUNDING)
    eps = noise(5, len(x), 3, key="posterior stl")
    parts = list(vae.encoder.parameters())
    for gradient, relation in (("stl", "="), ("plain", "!=")):
        loss = Elbo(5, kl="monte_carlo", gradient=gradient)(vae, batch_of(x), eps).loss.mean()
        largest = max(g.abs().max().item() for g in torch.autograd.grad(loss, parts))
        yield Row(f"largest entry of the encoder's gradient, {gradient}", largest, relation, 0, 1e-8)


def best_s2() -> Iterator[Row]:
    """GaussianOptimal finds s2 = E_q ||x - f||^2 / D, which at PPCA's optimum is the mean discarded eigenvalue; and the
    gradient there is that of a fixed s2 (envelope theorem)."""
    _, vae, x, s2 = best_linear()
    D, eps = x.shape[1], sigma_points(3, len(x))
    fixed = Elbo(6)(vae, batch_of(x), eps).elbo.mean().item()
    optimal = GaussianOptimal([D], rate=1.0).double().train()
    own = VAE(vae.encoder, vae.decoder, optimal, vae.prior)
    elbo = Elbo(6)(own, batch_of(x), eps).elbo.mean().item()
    yield Row("s2 that it finds", optimal.s2.item(), "=", s2, ROUNDING)
    yield Row("mean ELBO", elbo, "=", fixed, ROUNDING)
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.add_(0.1 * noise(*parameter.shape, key="off the optimum"))
    losses = [Elbo(6)(own, batch_of(x), eps).loss.mean()]
    found = VAE(vae.encoder, vae.decoder, gaussian((D,), optimal.s2.item()), vae.prior)
    losses += [Elbo(6)(found, batch_of(x), eps).loss.mean()]
    a, b = (torch.autograd.grad(loss, list(vae.parameters())) for loss in losses)
    worst = max((g - h).abs().max().item() for g, h in zip(a, b, strict=True))
    yield Row("|gradient - a fixed s2's|", worst, "=", 0, ROUNDING)


def annealed() -> Iterator[Row]:
    """Annealed importance sampling is right on average, and backwards from an exact sample of the posterior it is high:
    the two bracket log p (Grosse et al. 2015), and close in on it with more temperatures."""
    model, _ = example(D=5, d=2, s2=0.05)
    vae, n = linear(model), 16
    batch, _ = simulate(vae, n, stream("annealed"))
    log_p = model.log_prob(batch.x)
    gaps = []
    for temperatures in (4, 64):
        lower, upper = bdmc(vae, n, temperatures, 8, stream("annealed"))  # makes the same data first
        (low, low_error), (high, high_error) = mean_and_error(lower.log_p - log_p), mean_and_error(upper.log_p - log_p)
        gaps.append((high - low).item())
        yield Row(f"AIS - log p, {temperatures} temperatures", low.item(), "<=", 0, SIGMAS * low_error.item())
        yield Row("backwards AIS - log p", high.item(), ">=", 0, SIGMAS * high_error.item())
    yield Row("width of the bracket, 64 temperatures against 4", gaps[1], "<=", gaps[0], 0)
    weights = ais(vae, batch_of(batch.x[:1].expand(64, -1)), 64, 16, stream("ais"))
    mean, error = mean_and_error((weights.log_p - log_p[0]).exp())
    yield Row("E[weight] / p(x), 64 temperatures", mean.item(), "=", 1, SIGMAS * error.item())
