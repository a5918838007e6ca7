"""Probabilistic PCA against brute force, against the linear VAE, and against known values on real data."""

import math
from functools import cache

import pytest
import torch
from torch.distributions import MultivariateNormal

from vae_lab import decoders, encoders, likelihoods, priors
from vae_lab.data.sources import Digits, FashionMnist
from vae_lab.interfaces import Batch
from vae_lab.objectives import Elbo
from vae_lab.oracles import PPCA
from vae_lab.vae import VAE


@cache
def digits():
    return Digits([1, 8, 8], 0, 0).load().train.x.double() / 16


@cache
def synthetic(n=500, shape=(6,), seed=0):
    """Correlated data whose variances reach from 0.01 to 4."""
    generator = torch.Generator().manual_seed(seed)
    D = math.prod(shape)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64) / D**0.5
    scale = torch.logspace(-2, 0.6, D, dtype=torch.float64).sqrt()
    return ((torch.randn(n, D, generator=generator, dtype=torch.float64) * scale) @ mix + 3).reshape(n, *shape)


CASES = [("digits", d, s2) for d, s2 in [(1, 0.1), (8, 0.1), (8, 0.01), (70, 0.05), (4, 10.0)]]
CASES += [("synthetic", d, s2) for d, s2 in [(1, 1.0), (3, 0.1), (6, 0.02), (9, 0.02)]]
DATA = {"digits": digits, "synthetic": synthetic}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    name, d, s2 = request.param
    x = DATA[name]()
    return x, PPCA.of(x), d, s2


def test_log_p_is_the_density(case):
    x, ppca, d, s2 = case
    W, b = ppca.decoder(d, s2)
    brute = MultivariateNormal(b, W @ W.T + s2 * torch.eye(len(b), dtype=b.dtype)).log_prob(x.flatten(1))
    torch.testing.assert_close(ppca.log_prob(x, d, s2), brute, rtol=1e-9, atol=1e-9)
    assert ppca.log_p(d, s2) == pytest.approx(brute.mean().item(), rel=1e-9)


def test_posterior_is_bayes(case):
    """N(z | A x + a, sigma^2) = p(x | z) p(z) / p(x) at any z."""
    x, ppca, d, s2 = case
    x = x[:20].flatten(1)
    (W, b), (A, a, sigma) = ppca.decoder(d, s2), ppca.encoder(d, s2)
    z = torch.randn(len(x), d, dtype=x.dtype, generator=torch.Generator().manual_seed(0))

    def normal(value, mean, std):
        return torch.distributions.Normal(mean, std).log_prob(value).sum(-1)

    one = torch.ones((), dtype=x.dtype)
    joint = normal(x, z @ W.T + b, one * s2**0.5) + normal(z, 0 * one, one)
    torch.testing.assert_close(joint - normal(z, x @ A.T + a, sigma), ppca.log_prob(x, d, s2), rtol=1e-9, atol=1e-9)


def test_no_other_weights_are_better(case):
    x, ppca, d, s2 = case
    (W, b), x = ppca.decoder(d, s2), x.flatten(1)
    noise = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1e-1):
        V = W + scale * torch.randn(W.shape, generator=noise, dtype=W.dtype)
        other = MultivariateNormal(b, V @ V.T + s2 * torch.eye(len(b), dtype=b.dtype)).log_prob(x).mean()
        assert other < ppca.log_p(d, s2)


def linear_vae(ppca, shape, d, s2):
    """A linear VAE with the exact weights."""
    vae = VAE(
        encoders.Linear(shape, d), decoders.Linear(shape, d), likelihoods.Gaussian(shape, s2), priors.StandardNormal(d)
    ).double()
    (W, b), (A, a, sigma) = ppca.decoder(d, s2), ppca.encoder(d, s2)
    weights = {"decoder.f.weight": W, "decoder.f.bias": b, "encoder.mu.weight": A, "encoder.mu.bias": a}
    s2 = torch.tensor(s2, dtype=torch.float64)  # which float32 has only nearly
    vae.load_state_dict(weights | {"encoder.log_sigma": sigma.log(), "likelihood.s2": s2})
    return vae


def sigma_points(d, n):
    """Noise +-sqrt(d) e_j: its average is exact for any polynomial of second degree. [2d, n, d]"""
    points = d**0.5 * torch.eye(d, dtype=torch.float64)
    return torch.cat([points, -points])[:, None].expand(-1, n, -1)


@pytest.mark.parametrize(("name", "d", "s2"), [c for c in CASES if c[1] < 10], ids=str)
def test_the_linear_vae_reaches_log_p(name, d, s2):
    x = DATA[name]()
    ppca, batch = PPCA.of(x), Batch(x, torch.arange(len(x)))
    with torch.no_grad():
        vae = linear_vae(ppca, x.shape[1:], d, s2)
        terms = Elbo(2 * d)(vae, batch, sigma_points(d, len(x)))
        active = (vae.encoder(batch).mean.var(0, unbiased=False) > 0.01).sum()
        sse = ((vae.decoder(vae.encoder(batch).mean) - x) ** 2).flatten(1).sum(1).mean()
    torch.testing.assert_close(terms.elbo, ppca.log_prob(x, d, s2), rtol=0, atol=1e-6)
    D = x[0].numel()
    assert terms.elbo.mean().item() == pytest.approx(ppca.log_p(d, s2), abs=1e-6)
    assert terms.kl.mean().item() == pytest.approx(ppca.rate(d, s2), abs=1e-6)
    rec = -ppca.distortion(d, s2) / (2 * s2) - D / 2 * math.log(2 * math.pi * s2)
    assert terms.rec.mean().item() == pytest.approx(rec, abs=1e-6)
    assert active == ppca.active_units(d, s2)
    assert sse < ppca.distortion(d, s2) or ppca.rate(d, s2) == 0  # which counts the posterior's width too


def test_best_s2_is_the_maximum():
    ppca = PPCA.of(digits())
    for d in (1, 8, 32):
        s2 = ppca.best_s2(d)
        assert ppca.log_p(d, s2) > max(ppca.log_p(d, s2 * factor) for factor in (0.99, 1.01))
        assert s2 == pytest.approx(ppca.distortion(d, s2) / 64, rel=1e-12)  # s2* = E_q ||x - f||^2 / D


def test_data_of_few_dimensions():
    x = synthetic(100)
    ppca = PPCA.of(torch.cat([x, x], 1))  # 12 values, 6 dimensions
    assert ppca.best_s2(5) > 0 and ppca.eigenvalues.min() >= 0
    for d in (6, 12, 20):
        with pytest.raises(ValueError, match=rf"^d must be below 6, .*got {d}"):
            ppca.best_s2(d)


def test_arguments_are_checked():
    ppca = PPCA.of(synthetic())
    with pytest.raises(ValueError, match=r"^d must be a whole number >= 1, got 0"):
        ppca.rate(0, 0.1)
    for s2 in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"^s2 must be a finite number > 0, got {s2}"):
            ppca.log_p(1, s2)


def test_chunks_do_not_matter(monkeypatch):
    x = synthetic(101).float()
    whole = PPCA.of(x)
    monkeypatch.setattr("vae_lab.oracles.ppca.CHUNK", 10)
    split = PPCA.of(x)
    torch.testing.assert_close(split.eigenvalues, whole.eigenvalues, rtol=1e-12, atol=0)
    assert split.log_p(2, 0.1) == pytest.approx(split.log_prob(x, 2, 0.1).mean().item(), rel=1e-12)


@pytest.fixture(scope="module")
def fashion(data_folder):
    splits = FashionMnist([784], 0, data_folder, None, ["http://127.0.0.1:1"]).load()
    return PPCA.of(splits.train.x.float() / 255), splits.test.x.float() / 255


@pytest.mark.slow
@pytest.mark.parametrize(
    ("s2", "k", "log_p", "test_log_p", "rate"),
    [
        (1.0, 8, -740.243, -740.189, 5.333),
        (0.5, 13, -481.505, -481.443, 8.986),
        (0.1, 53, 78.460, 78.460, 31.904),
        (0.01, 302, 643.458, 641.791, 201.44),
    ],
)
def test_fashion_mnist_at_fixed_s2(fashion, s2, k, log_p, test_log_p, rate):
    ppca, x_test = fashion
    d = 784
    assert int((ppca.eigenvalues > s2).sum()) == k
    assert ppca.log_p(d, s2) == pytest.approx(log_p, abs=5.1e-4)  # the table's last digit
    assert ppca.log_prob(x_test, d, s2).mean().item() == pytest.approx(test_log_p, abs=5.1e-4)
    assert ppca.rate(d, s2) == pytest.approx(rate, abs=5.1e-3 if s2 == 0.01 else 5.1e-4)
    assert ppca.log_p(k, s2) == ppca.log_p(d, s2) > ppca.log_p(k - 1, s2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "s2", "log_p", "test_log_p"),
    [
        (5, 0.0336100, 204.561, 205.851),
        (20, 0.0191879, 396.761, 396.699),
        (50, 0.0127611, 513.860, 512.852),
    ],
)
def test_fashion_mnist_at_the_best_s2(fashion, d, s2, log_p, test_log_p):
    ppca, x_test = fashion
    best = ppca.best_s2(d)
    assert best == pytest.approx(s2, abs=5.1e-8)
    assert ppca.log_p(d, best) == pytest.approx(log_p, abs=5.1e-4)
    assert ppca.log_prob(x_test, d, best).mean().item() == pytest.approx(test_log_p, abs=5.1e-4)
