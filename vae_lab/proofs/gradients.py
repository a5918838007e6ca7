"""(17)-(20): gradients, and what their estimates vary by."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vae_lab.data.sampling import Shuffled, WithReplacement
from vae_lab.interfaces import Batch
from vae_lab.objectives import Elbo, NoteEq20
from vae_lab.oracles import LinearGaussian
from vae_lab.proofs.models import (
    amortised,
    batch_of,
    example,
    free,
    gaussian,
    gradient,
    linear,
    mean_and_error,
    mlp,
    noise,
    parameter_gradients,
    phi_gradients,
    stream,
    variance_and_error,
)
from vae_lab.proofs.row import ROUNDING, SIGMAS, Row
from vae_lab.vae import VAE


def finite_differences() -> Iterator[Row]:
    """(17): the gradient of the ELBO in Theta and phi, against differences along three directions."""
    vae, x, eps = mlp(4, 2), noise(6, 4, key="x"), noise(3, 6, 2)
    parameters = list(vae.parameters())
    found = gradient(vae, Elbo(3), x, eps)
    at = torch.nn.utils.parameters_to_vector(parameters).detach()

    @torch.no_grad()
    def elbo(values: Tensor) -> float:
        torch.nn.utils.vector_to_parameters(values, parameters)
        return Elbo(3)(vae, batch_of(x), eps).elbo.sum().item()

    for i in range(3):
        v = noise(len(at), key=f"direction {i}")
        v /= v.norm()
        # the error of a central difference is c h^2 + rounding: Richardson's step removes c, and tells its size
        coarse, fine = ((elbo(at + h * v) - elbo(at - h * v)) / (2 * h) for h in (2e-4, 1e-4))
        rounding = 100 * torch.finfo(at.dtype).eps * abs(elbo(at)) / 1e-4
        yield Row(
            f"directional derivative, direction {i + 1}",
            (found @ v).item(),
            "=",
            fine + (fine - coarse) / 3,
            abs(fine - coarse) + rounding,
        )


def minibatches() -> Iterator[Row]:
    """(18): n/m sum_i grad L_i has the gradient's mean and, in the decoder's b, the variance
    (n^2 / m)(A + B / V): A between the data, B within a datum; without replacement A (n - m) / (n - 1)."""
    n, m, V, R = 12, 4, 2, 40_000
    model, _ = example(D=3, d=2)
    x = 2 * noise(n, 3, key="minibatches x")
    A, a, sigma = noise(2, 3, key="A") / 2, noise(2, key="a"), torch.tensor([0.7, 1.2], dtype=x.dtype)
    vae = linear(model, amortised(A, a, sigma))
    with torch.no_grad():
        q = vae.encoder(batch_of(x))
    # grad_b L_i = (x_i - W z_i - b) / s2, z_i ~ N(mu_i, diag(sigma^2))
    W, b, s2 = model.W, model.b, model.s2
    means = (x - q.mean @ W.T - b) / s2  # [n, D]
    between = ((means - means.mean(0)) ** 2).mean(0)
    within = (W**2 @ q.variance.mT).mT.mean(0) / s2**2
    samplings = {
        "with replacement": (WithReplacement(m, m, 1), between),
        "without replacement": (Shuffled(m, m, 1), between * (n - m) / (n - 1)),
    }
    for name, (sampling, first) in samplings.items():
        drawn = stream(name)
        index = torch.stack([sampling.order(n, drawn)[:m] for _ in range(R)])  # [R, m]
        draws = parameter_gradients(vae, Elbo(V), x[index], noise(R, V, m, 2, key=name))
        g = n / m * draws["decoder.f.bias"]  # [R, D]
        (mean, error), (variance, spread) = mean_and_error(g), variance_and_error(g)
        exact = n**2 / m * (first + within / V)
        total = means.sum(0)
        for j in range(len(b)):
            yield Row(f"mean, {name}, b_{j + 1}", mean[j].item(), "=", total[j].item(), SIGMAS * error[j].item())
        for j in range(len(b)):
            tolerance = SIGMAS * spread[j].item()
            yield Row(f"variance, {name}, b_{j + 1}", variance[j].item(), "=", exact[j].item(), tolerance)


def linear_case(V: int, R: int) -> tuple[VAE, Batch, Tensor, LinearGaussian, Tensor, Tensor]:
    """One datum R times over, each with noise of its own; its model, and mu and sigma of a q that is not optimal."""
    model, x = example(D=5, d=2)
    mu, sigma = torch.tensor([0.4, -0.9], dtype=x.dtype), torch.tensor([0.5, 0.8], dtype=x.dtype)
    vae = linear(model, free(mu.expand(R, 2), sigma.expand(R, 2), (5,)))
    return vae, batch_of(x[:1].expand(R, 5)), noise(V, R, 2, key=f"V={V}"), model, mu, sigma


def reparameterised() -> Iterator[Row]:
    """(19): where f is linear, Cov(grad_mu) = G diag(sigma^2) G / (s2^2 V), G = W^T W."""
    for V in (1, 5):
        vae, batch, eps, model, mu, sigma = linear_case(V, 40_000)
        draws = phi_gradients(vae, Elbo(V), batch, eps)[:, :2]
        mean, error = mean_and_error(draws)
        G = model.W.T @ model.W
        expected = (batch.x[0] - model.b - model.W @ mu) @ model.W / model.s2 - mu
        covariance = G @ (sigma**2).diag() @ G / (model.s2**2 * V)
        for j in range(2):
            yield Row(
                f"mean of grad_mu_{j + 1}, V={V}", mean[j].item(), "=", expected[j].item(), SIGMAS * error[j].item()
            )
        centred = draws - draws.mean(0)
        for i, j in ((0, 0), (0, 1), (1, 1)):
            products = centred[:, i] * centred[:, j]
            found, spread = mean_and_error(products)
            tolerance = SIGMAS * spread.item()
            yield Row(f"Cov(grad_mu)_{i + 1}{j + 1}, V={V}", found.item(), "=", covariance[i, j].item(), tolerance)


def score_function() -> Iterator[Row]:
    """(19): the score function's gradient E[log p(x | z) grad log q] has the same mean, and a far larger variance."""
    R = 200_000
    vae, batch, eps, model, mu, sigma = linear_case(1, R)
    draws = phi_gradients(vae, Elbo(1, gradient="score"), batch, eps)[:, :2]
    (mean, error), (variance, spread) = mean_and_error(draws), variance_and_error(draws)
    expected = (batch.x[0] - model.b - model.W @ mu) @ model.W / model.s2 - mu
    # its variance: log p(x | z) eps_j / sigma_j is a polynomial in eps, which Gauss and Hermite integrate exactly
    nodes, weights = gauss_hermite(12, 2)
    z = mu + sigma * nodes
    D = len(model.b)
    sse = ((batch.x[0] - model.b - z @ model.W.T) ** 2).sum(1)
    log_p_x = -sse / (2 * model.s2) - D / 2 * math.log(2 * math.pi * model.s2)
    values = log_p_x[:, None] * nodes / sigma
    exact = weights @ values**2 - (weights @ values) ** 2
    G = model.W.T @ model.W
    plain = (G @ (sigma**2).diag() @ G).diagonal() / model.s2**2
    pathwise = phi_gradients(vae, Elbo(1), batch, eps)[:, :2].var(0)
    for j in range(2):
        yield Row(f"mean of grad_mu_{j + 1}", mean[j].item(), "=", expected[j].item(), SIGMAS * error[j].item())
        yield Row(f"variance of grad_mu_{j + 1}", variance[j].item(), "=", exact[j].item(), SIGMAS * spread[j].item())
        ratio, tolerance = (
            variance[j] / pathwise[j],
            SIGMAS * (spread[j] / pathwise[j] + exact[j] / plain[j] * (2 / R) ** 0.5),
        )
        yield Row(f"its ratio to (19)'s, mu_{j + 1}", ratio.item(), "=", (exact[j] / plain[j]).item(), tolerance.item())


def detached() -> Iterator[Row]:
    """(19): with z taken for a constant, the encoder is told of the KL alone."""
    vae, batch, eps, model, mu, sigma = linear_case(1, 1000)
    draws = phi_gradients(vae, Elbo(1, gradient="detached"), batch, eps)
    right = (batch.x[0] - model.b - model.W @ mu) @ model.W / model.s2 - mu
    kl_alone = torch.cat([-mu, 1 - sigma**2])
    worst = (draws - kl_alone).abs().max().item()
    yield Row("|gradient + grad KL|, any draw", worst, "=", 0, ROUNDING)
    for j in range(2):
        yield Row(f"grad_mu_{j + 1} is not the ELBO's", draws[:, j].mean().item(), "!=", right[j].item(), ROUNDING)


def printed_objective() -> Iterator[Row]:
    """(20): as printed, without 1 / (2 s2), it is the ELBO at s2 = 1/2 and nowhere else; s2 does nothing."""
    x, eps = noise(6, 4, key="x"), noise(3, 6, 2)
    for s2 in (0.5, 0.1):
        vae = mlp(4, 2, s2)
        note, exact = gradient(vae, NoteEq20(3), x, eps), gradient(vae, Elbo(3), x, eps)
        printed = by_hand(vae, x, eps)
        yield Row(f"|gradient - (20) by hand|, s2={s2}", (note - printed).abs().max().item(), "=", 0, ROUNDING)
        cosine = (note @ exact / (note.norm() * exact.norm())).item()
        if s2 == 0.5:
            yield Row("|gradient - the ELBO's|, s2=0.5", (note - exact).abs().max().item(), "=", 0, ROUNDING)
            yield Row("cosine with the ELBO's gradient, s2=0.5", cosine, "=", 1, ROUNDING)
        else:
            expected = (printed @ exact / (printed.norm() * exact.norm())).item()
            yield Row(f"cosine with the ELBO's gradient, s2={s2}", cosine, "=", expected, ROUNDING)
            yield Row("... another direction", cosine, "!=", 1, ROUNDING)
            weighed = gradient(vae, Elbo(3, beta=1 / (2 * s2)), x, eps)
            worst = (note - 2 * s2 * weighed).abs().max().item()
            yield Row("|gradient - 2 s2 the ELBO's with beta = 1 / (2 s2)|", worst, "=", 0, ROUNDING)


def by_hand(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The gradient of (20) as the note prints it."""
    q = vae.encoder(batch_of(x))
    mu, sigma = q.mean, q.variance.sqrt()
    sse = ((vae.decoder(mu + sigma * eps) - x) ** 2).sum(-1).mean(0)
    kl = -0.5 * (1 + (sigma**2).log() - sigma**2 - mu**2).sum(-1)
    return torch.cat([g.flatten() for g in torch.autograd.grad((-sse - kl).sum(), list(vae.parameters()))])


def dead_knob() -> Iterator[Row]:
    """(20): trained on what is printed, a model has the same weights whatever s2; on the ELBO it has not."""
    x = noise(6, 4, key="x")
    for objective, relation in ((NoteEq20(2), "="), (Elbo(2), "!=")):
        ends = []
        for s2 in (0.1, 0.5):
            vae = mlp(4, 2, s2)
            optimizer = torch.optim.SGD(vae.parameters(), 1e-3)
            for step in range(20):
                optimizer.zero_grad()
                objective(vae, batch_of(x), noise(2, 6, 2, key=f"step {step}")).loss.mean().backward()
                optimizer.step()
            ends.append(torch.nn.utils.parameters_to_vector(vae.parameters()).detach())
        worst = (ends[0] - ends[1]).abs().max().item()
        name = type(objective).__name__
        yield Row(f"|weights(s2=0.1) - weights(s2=0.5)|, {name}, 20 steps", worst, relation, 0, ROUNDING)


def rescaled() -> Iterator[Row]:
    """(20): ELBO(s2) 2 s2 = -SSE - 2 s2 KL - s2 D log 2 pi s2, so that s2 is a weight beta of the KL."""
    x, eps, D = noise(6, 4, key="x"), noise(3, 6, 2), 4
    for s2 in (0.1, 0.5):
        vae = mlp(4, 2, s2)
        vae.likelihood = gaussian((D,), s2)
        with torch.no_grad():
            q, terms = vae.encoder(batch_of(x)), Elbo(3)(vae, batch_of(x), eps)
            sse = ((vae.decoder(q.mean + q.variance.sqrt() * eps) - x) ** 2).sum(-1).mean(0)
            kl = kl_divergence(q, vae.p_z())
        difference = 2 * s2 * terms.elbo + sse + 2 * s2 * kl + s2 * D * math.log(2 * math.pi * s2)
        yield Row(f"|difference|, s2={s2}", difference.abs().max().item(), "=", 0, ROUNDING)


def gauss_hermite(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Nodes [n^d, d] and weights [n^d] that integrate polynomials of degree 2n - 1 against N(0, I) exactly
    (Golub & Welsch 1969): the nodes are the eigenvalues of the recurrence z He_k = He_{k+1} + k He_{k-1}."""
    off = torch.arange(1, n, dtype=torch.float64).sqrt().diag(1)
    nodes, vectors = torch.linalg.eigh(off + off.T)
    weights = vectors[0] ** 2
    return (
        torch.cartesian_prod(*[nodes] * d).reshape(-1, d),
        torch.cartesian_prod(*[weights] * d).reshape(-1, d).prod(1),
    )
