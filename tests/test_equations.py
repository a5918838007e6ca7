"""The note's equations (1), (4), (7)-(10), (16), (17), (19) and (20), each against an answer found in another way."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import logsigmoid

from vae_lab import decoders, encoders, likelihoods, priors
from vae_lab.distributions import (
    DiagonalNormal,
    IsotropicNormal,
    StandardNormal,
    kl_per_dimension,
    reparameterise,
)
from vae_lab.interfaces import Batch, Decoder, Encoder
from vae_lab.objectives import Elbo
from vae_lab.vae import VAE

DOUBLE = torch.zeros((), dtype=torch.float64)
MU, SIGMA = (torch.tensor(v, dtype=torch.float64) for v in ([0.7, -1.2, 0.1], [0.5, 1.3, 2.0]))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_vae(shape=(4,), d=2, likelihood=None):
    torch.manual_seed(0)
    parts = encoders.MLP(shape, d, [5], "tanh"), decoders.MLP(shape, d, [5], "tanh")
    return VAE(*parts, likelihood or likelihoods.Gaussian(shape, 0.1), priors.StandardNormal(d)).double()


def make_batch(n=6, shape=(4,)):
    return Batch(randn(n, *shape, seed=1), torch.arange(n))


# (10), (16): the normal and the KL


def test_kl_of_the_worked_example():
    q, p = DiagonalNormal(MU, SIGMA), StandardNormal(3, DOUBLE)
    by_hand = 0.5 * sum(m**2 + s**2 - 1 - math.log(s**2) for m, s in [(0.7, 0.5), (-1.2, 1.3), (0.1, 2.0)])
    kl = kl_divergence(q, p)
    assert kl.item() == pytest.approx(by_hand, rel=1e-12)
    assert kl.item() == pytest.approx(2.1776357, abs=1e-7)
    variances = DiagonalNormal(MU, SIGMA.sqrt())  # what a sigma read as a variance gives
    assert kl_divergence(variances, p).item() == pytest.approx(1.2388, abs=1e-4)


def test_kl_is_torchs():
    mu, sigma = randn(7, 3), randn(7, 3, seed=1).exp()
    torchs = kl_divergence(
        Independent(Normal(mu, sigma), 1), Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    )
    q, p = DiagonalNormal(mu, sigma), StandardNormal(3, DOUBLE)
    torch.testing.assert_close(kl_divergence(q, p), torchs)
    torch.testing.assert_close(kl_per_dimension(q, p), kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)))


def test_kl_by_sampling():
    q, p = DiagonalNormal(MU, SIGMA), StandardNormal(3, DOUBLE)
    z = reparameterise(q, randn(100_000, 3))
    ratios = q.log_prob(z) - p.log_prob(z)
    error = ratios.std() / len(ratios) ** 0.5
    assert (ratios.mean() - kl_divergence(q, p)).abs() < 4 * error


def test_log_densities_are_torchs():
    mu, sigma, z = randn(7, 3), randn(7, 3, seed=1).exp(), randn(4, 7, 3, seed=2)
    torch.testing.assert_close(DiagonalNormal(mu, sigma).log_prob(z), Normal(mu, sigma).log_prob(z).sum(-1))
    torch.testing.assert_close(StandardNormal(3, DOUBLE).log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1))


# (8): the likelihoods, with all their constants


@pytest.mark.parametrize("s2", [0.01, 0.5, 3.0])
def test_gaussian_has_its_normaliser(s2):
    eta, x = randn(5, 2, 3), randn(5, 2, 3, seed=1)
    p = IsotropicNormal(eta, DOUBLE + s2, event_dims=2)
    torch.testing.assert_close(p.log_prob(x), Normal(eta, s2**0.5).log_prob(x).sum((1, 2)))
    assert p.batch_shape == (5,) and p.event_shape == (2, 3)
    assert torch.equal(p.mean, eta) and torch.equal(p.variance, torch.full_like(eta, s2))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("s2", [0.01, 0.5])
def test_gaussian_integrates_to_one(D, s2):
    """The trapezium rule is exact to rounding for a normal whose tails it holds, at steps below its deviation."""
    s = s2**0.5
    axis = torch.arange(-10, 10.25, 0.25, dtype=torch.float64) * s
    x = torch.cartesian_prod(*[axis] * D).reshape(-1, D) + 0.3
    density = likelihoods.Gaussian([D], s2).double()(torch.full((D,), 0.3, dtype=torch.float64)).log_prob(x).exp()
    assert density.sum().item() * (0.25 * s) ** D == pytest.approx(1, rel=1e-12)


def test_bernoulli_by_hand():
    logits, x = torch.tensor([[0.3, -2.0, 1.5]]), torch.tensor([[1.0, 0.0, 0.25]])
    p = [1 / (1 + math.exp(-v)) for v in (0.3, -2.0, 1.5)]
    by_hand = math.log(p[0]) + math.log(1 - p[1]) + 0.25 * math.log(p[2]) + 0.75 * math.log(1 - p[2])
    assert likelihoods.Bernoulli([3])(logits).log_prob(x).item() == pytest.approx(by_hand, rel=1e-6)
    far = torch.tensor([60.0, -60.0], dtype=torch.float64)  # where sigmoid(60) rounds to 1
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(likelihoods.Bernoulli([2])(far).log_prob(x), 2 * logsigmoid(-far[0]))


def test_bernoulli_sums_to_one():
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    assert likelihoods.Bernoulli([3])(randn(3)).log_prob(values).exp().sum().item() == pytest.approx(1, rel=1e-12)


# (19), (20): samples and the objective


def test_reparameterisation_by_hand():
    q, eps = DiagonalNormal(MU, SIGMA), torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, -0.5]], dtype=torch.float64)
    by_hand = [[0.7 + 0.5, -1.2 - 1.3, 0.1], [0.7, -1.2 + 2.6, 0.1 - 1.0]]
    torch.testing.assert_close(reparameterise(q, eps), torch.tensor(by_hand, dtype=torch.float64))
    assert torch.equal(reparameterise(StandardNormal(3, DOUBLE), eps), eps)
    with pytest.raises(NotImplementedError, match="Normal"):
        reparameterise(Normal(MU, SIGMA), eps)


def test_objective_by_hand():
    """(20) written out, with the factor 1 / (2 s2) and the constant that the note drops."""
    vae, batch, eps = make_vae(), make_batch(), randn(3, 6, 2)
    h = vae.encoder.net(batch.x)
    mu, log_sigma = h[:, :2], h[:, 2:]
    s2 = vae.likelihood.s2.item()
    sse = torch.stack([((vae.decoder(mu + log_sigma.exp() * e) - batch.x) ** 2).sum(1) for e in eps])
    rec = (-sse / (2 * s2) - 4 / 2 * math.log(2 * math.pi * s2)).mean(0)
    kl = -0.5 * (1 + 2 * log_sigma - (2 * log_sigma).exp() - mu**2).sum(1)
    terms = Elbo(3)(vae, batch, eps)
    for found, expected in zip(terms, (kl - rec, rec - kl, rec, kl), strict=True):
        torch.testing.assert_close(found, expected)


def test_V_averages_outside_the_logarithm():
    vae, batch, eps = make_vae(), make_batch(), randn(5, 6, 2)
    alone = [Elbo(1)(vae, batch, eps[v : v + 1]) for v in range(5)]
    together = Elbo(5)(vae, batch, eps)
    for name in together._fields:
        torch.testing.assert_close(getattr(together, name), torch.stack([getattr(t, name) for t in alone]).mean(0))
    inside = torch.stack([t.rec for t in alone]).logsumexp(0) - math.log(5)
    assert (together.rec < inside).all()  # Jensen's inequality, strict as the samples differ


@pytest.mark.parametrize("V", [1, 7])
def test_the_encoder_runs_once(V):
    vae, calls = make_vae(), []
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    Elbo(V)(vae, make_batch(), randn(V, 6, 2))
    assert len(calls) == 1


def test_terms_are_per_datum():
    vae, batch, eps = make_vae(), make_batch(), randn(3, 6, 2)
    terms, order = Elbo(3)(vae, batch, eps), torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = Elbo(3)(vae, Batch(batch.x[order], batch.index[order]), eps[:, order])
    changed = Elbo(3)(vae, Batch(torch.cat([batch.x[:1] + 9, batch.x[1:]]), batch.index), eps)
    for before, after, other in zip(terms, permuted, changed, strict=True):
        assert before.shape == (6,)
        torch.testing.assert_close(after, before[order])
        torch.testing.assert_close(other[1:], before[1:])
        assert other[0] != before[0]


def test_terms_sum_over_the_values_of_a_datum():
    class Twice(Decoder):
        def __init__(self, decoder):
            super().__init__()
            self.decoder, self.d, self.shape = decoder, decoder.d, (2, *decoder.shape)

        def forward(self, z, label=None):
            return torch.stack([self.decoder(z)] * 2, -2)

    class Half(Encoder):
        def __init__(self, encoder):
            super().__init__()
            self.encoder, self.d, self.shape = encoder, encoder.d, (2, *encoder.shape)

        def forward(self, batch):
            return self.encoder(batch._replace(x=batch.x[:, 0]))

    vae, batch, eps = make_vae(), make_batch(), randn(3, 6, 2)
    double = VAE(Half(vae.encoder), Twice(vae.decoder), likelihoods.Gaussian([2, 4], 0.1).double(), vae.prior)
    once = Elbo(3)(vae, batch, eps)
    twice = Elbo(3)(double, batch._replace(x=torch.stack([batch.x] * 2, 1)), eps)
    torch.testing.assert_close(twice.rec, 2 * once.rec)
    torch.testing.assert_close(twice.kl, once.kl)


@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian([4], 0.5), likelihoods.Bernoulli([4])], ids=["g", "b"])
def test_gradient_by_finite_differences(likelihood):
    """(17)"""
    vae, eps = make_vae(likelihood=likelihood), randn(3, 6, 2)
    batch = Batch(make_batch().x.sigmoid(), torch.arange(6))
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in vae.named_parameters()), strict=True)

    class Scored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae

        def forward(self):
            return Elbo(3)(self.vae, batch, eps).loss

    def loss(*values):
        return torch.func.functional_call(Scored(), {f"vae.{n}": v for n, v in zip(names, values, strict=True)}, ())

    assert torch.autograd.gradcheck(loss, values)


# (1), (4): a model that is not linear, integrated on a grid


class Curve(Decoder):
    d, shape = 1, (3,)

    def forward(self, z, label=None):
        return torch.cat([torch.sin(2 * z), z**2 / 2, torch.tanh(z)], -1)


class Fixed(Encoder):
    d, shape = 1, (3,)

    def __init__(self, mu, sigma):
        super().__init__()
        self.mu, self.sigma = mu, sigma

    def forward(self, batch):
        one = torch.ones(len(batch.x), 1, dtype=batch.x.dtype)
        return DiagonalNormal(self.mu * one, self.sigma * one)


def curve(mu=1.0, sigma=0.5):
    vae = VAE(Fixed(mu, sigma), Curve(), likelihoods.Gaussian([3], 0.1), priors.StandardNormal(1)).double()
    vae.likelihood.s2 = DOUBLE + 0.1  # which float32 has only nearly
    return vae, Batch(torch.tensor([[0.5, 0.8, 0.6]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64))


GRID = torch.arange(-12, 12, 1e-3, dtype=torch.float64)[:, None]  # the trapezium rule's error is below rounding


def integral(values):
    return values.sum(0) * 1e-3


def test_golden_log_p():
    vae, batch = curve()
    p_z = StandardNormal(1, DOUBLE).log_prob(GRID)[:, None]
    joint = vae.p_x(GRID[:, None]).log_prob(batch.x) + p_z
    assert integral(joint.exp()).log().item() == pytest.approx(-2.0211260, abs=1e-7)


def test_golden_elbo():
    vae, batch = curve()
    everywhere = Batch(batch.x.expand(len(GRID), -1), torch.zeros(len(GRID), dtype=torch.int64))  # one x for each eps
    terms = Elbo(1)(vae, everywhere, GRID[None])
    assert terms.kl[0].item() == pytest.approx(0.8181472, abs=1e-7)
    p_eps = StandardNormal(1, DOUBLE).log_prob(GRID).exp()
    assert integral(terms.elbo * p_eps).item() == pytest.approx(-3.2444195, abs=1e-7)


@pytest.mark.parametrize(("mu", "sigma"), [(1.0, 0.5), (0.5, 0.2), (0.0, 1.0), (0.4, 0.1), (3.0, 0.05)])
def test_elbo_is_a_lower_bound(mu, sigma):
    """By as much as KL(q || posterior): log p = ELBO + KL(q(z) || p(z | x)) (4)."""
    vae, batch = curve(mu, sigma)
    eps = randn(4000, 1, 1)
    elbo = Elbo(4000)(vae, batch, eps)
    q = vae.encoder(batch)
    rec = vae.p_x(reparameterise(q, eps)).log_prob(batch.x)
    error = rec.std() / len(rec) ** 0.5
    z = GRID[:, None]
    log_joint = vae.p_x(z).log_prob(batch.x) + StandardNormal(1, DOUBLE).log_prob(z)
    log_p = integral(log_joint.exp()).log()
    gap = integral(q.log_prob(z).exp() * (q.log_prob(z) - log_joint + log_p))
    assert gap > 0
    assert (elbo.elbo + gap - log_p).abs() < 4 * error
