"""The priors besides N(0, I): a mixture's density and its samples from normal noise alone, and VampPrior."""

import io
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from vae_lab import decoders, encoders, likelihoods, posteriors, priors
from vae_lab.distributions import DiagonalNormal, FullNormal, StandardNormal, reparameterise
from vae_lab.distributions import Mixture as MixtureOf
from vae_lab.interfaces import Batch
from vae_lab.objectives import Elbo
from vae_lab.vae import VAE

DOUBLE = torch.zeros((), dtype=torch.float64)
KINDS = ["diagonal", "full", "flow"]
SHAPE = (1, 3, 2)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_posterior(kind, d=2):
    return {
        "diagonal": lambda: posteriors.Diagonal(d),
        "full": lambda: posteriors.Full(d),
        "flow": lambda: posteriors.Flow(d, 2, [8]),
    }[kind]()


def make_mixture(kind="diagonal", K=4, d=2):
    """Unequal weights, overlapping components."""
    torch.manual_seed(0)
    part = make_posterior(kind, d).double()
    return MixtureOf(randn(K, seed=1).log_softmax(0), part(0.8 * randn(K, part.size)))


def make_vae(prior, kind="diagonal", d=2, seed=0):
    torch.manual_seed(seed)
    encoder = encoders.MLP(SHAPE, d, [5], "tanh", make_posterior(kind, d))
    prior = {"mixture": lambda: priors.Mixture(d, 3), "vamp": lambda: priors.Vamp(d, SHAPE, 3)}[prior]()
    return VAE(encoder, decoders.MLP(SHAPE, d, [5], "tanh"), likelihoods.Gaussian(SHAPE, 0.1), prior).double()


def make_batch(n=6):
    return Batch(torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)).double(), torch.arange(n))


def plane(p, n=600):
    """A grid that holds all of p: its points, and the area of each."""
    low, high = reparameterise(p, randn(5000, 2)).aminmax(dim=0)
    low, high = low - (high - low), high + (high - low)
    step = (high - low) / n
    axes = (low[j] + step[j] * torch.arange(n, dtype=torch.float64) for j in range(2))
    return torch.cartesian_prod(*axes), step


# The density


def test_a_mixture_of_normals_is_torchs():
    p, z = make_mixture(), randn(3, 5, 2, seed=2)
    components = Independent(Normal(p.components.mu, p.components.sigma), 1)
    torchs = MixtureSameFamily(Categorical(logits=p.log_w), components)
    torch.testing.assert_close(p.log_prob(z), torchs.log_prob(z))
    torch.testing.assert_close(p.mean, torchs.mean)
    torch.testing.assert_close(p.variance, torchs.variance)
    assert p.batch_shape == () and p.event_shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_integrates_to_one(kind):
    """Of normals to rounding; of flows, which have the kinks of relu, to step^2."""
    p = make_mixture(kind)
    z, step = plane(p)
    with torch.no_grad():
        total = p.log_prob(z).exp().sum() * step.prod()
    assert total.item() == pytest.approx(1, abs=step.max().item() ** 2 if kind == "flow" else 1e-10)


# Samples


@pytest.mark.parametrize("K", [1, 2, 10])
def test_a_mixtures_quantiles_are_exact(K):
    """Noise at N equal steps of the normal's quantiles gives each component to within one of N w_k of its own
    quantiles, so that the mixture's distribution function is met to within 2K / N everywhere."""
    N, p = 10_000, make_mixture(K=K, d=1)
    eps = torch.special.ndtri((torch.arange(N, dtype=torch.float64) + 0.5) / N)[:, None]
    z = reparameterise(p, eps).sort(0).values
    F = (p.log_w.exp() * torch.special.ndtr((z - p.components.mu[:, 0]) / p.components.sigma[:, 0])).sum(-1)  # [N]
    assert (F - (torch.arange(N) + 0.5) / N).abs().max() < 2 * K / N


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_mixtures_density(kind):
    """Means of functions of z over samples agree with their integrals, within the sampling error."""
    p = make_mixture(kind)
    grid, step = plane(p)

    def functions(z):
        x, y = z.unbind(-1)
        return torch.stack([x, y, x**2, y**2, x * y, (x + 2 * y).sin(), (x > 0.3).double(), (y > x).double()])

    with torch.no_grad():
        exact = (functions(grid) * p.log_prob(grid).exp()).sum(-1) * step.prod()
        found = functions(reparameterise(p, randn(100_000, 2, seed=3)))
    error = found.std(1) / found.shape[1] ** 0.5 + step.max() * torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])  # a step's edge
    assert ((found.mean(1) - exact).abs() < 4.5 * error).all()
    if kind != "flow":
        torch.testing.assert_close(p.mean, exact[:2], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(p.variance, exact[2:4] - exact[:2] ** 2, rtol=1e-6, atol=1e-6)


def test_the_noise_left_over_is_independent_of_the_choice():
    """With components far apart, each sample tells its component, and its noise within that is N(0, I)."""
    mu, sigma = torch.tensor([[-100.0, 0.0], [0.0, 0.0], [100.0, 0.0]]).double(), 2.0
    p = MixtureOf(torch.tensor([0.2, 0.3, 0.5]).double().log(), DiagonalNormal(mu, sigma + 0 * mu))
    z = reparameterise(p, randn(100_000, 2))
    k = ((z[:, 0] + 150) // 100).long()
    for j, w in enumerate((0.2, 0.3, 0.5)):
        assert abs((k == j).double().mean() - w) < 4 * (w * (1 - w) / len(z)) ** 0.5
        eps = (z[k == j] - mu[j]) / sigma
        n = len(eps)
        assert (eps.mean(0).abs() < 4 / n**0.5).all() and ((eps**2).mean(0) - 1).abs().max() < 4 * (2 / n) ** 0.5
        assert eps.prod(1).mean().abs() < 4 / n**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_noise_is_too_far(dtype):
    """Phi of it rounds to 0 or 1; a component of weight 0 is never chosen."""
    log_w = torch.tensor([-200.0, 0.0, -200.0], dtype=dtype).log_softmax(0)
    mu = torch.tensor([[-1e6], [0.0], [1e6]], dtype=dtype)
    p = MixtureOf(log_w, DiagonalNormal(mu, torch.ones_like(mu)))
    z = reparameterise(p, torch.tensor([[-9.0], [0.0], [9.0]], dtype=dtype))
    assert z.dtype == dtype and z.abs().max() < 10


def test_one_component_of_unit_variance_is_the_standard_normal():
    one = FullNormal(torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    p, standard, z = MixtureOf(torch.zeros(1).double(), one), StandardNormal(2, DOUBLE), randn(5, 2)
    torch.testing.assert_close(p.log_prob(z), standard.log_prob(z))
    torch.testing.assert_close(reparameterise(p, z), z)


# The priors in a model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_model_learns_its_prior(prior, kind):
    """The KL is by samples; gradients reach every parameter; the state comes back; samples are images."""
    vae, batch, eps = make_vae(prior, kind), make_batch(), randn(5, 6, 2)
    terms = Elbo(V=5)(vae, batch, eps)
    q, p = vae.encoder(batch), vae.p_z()
    z = reparameterise(q, eps)
    torch.testing.assert_close(terms.kl, (q.log_prob(z) - p.log_prob(z)).mean(0))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)
    terms.loss.sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name

    file = io.BytesIO()
    torch.save(vae.state_dict(), file)
    file.seek(0)
    other = make_vae(prior, kind, seed=1)
    assert not torch.equal(other.sample(eps[0]), vae.sample(eps[0]))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.sample(eps[0]), vae.sample(eps[0]))
    assert vae.sample(eps[0]).shape == (6, *SHAPE)


def test_vamp_is_the_mean_of_the_encoders_posteriors():
    vae, z = make_vae("vamp"), randn(4, 2)
    q = vae.encoder(Batch(vae.prior.u, torch.arange(3)))
    by_hand = torch.stack([Normal(q.mu[k], q.sigma[k]).log_prob(z).sum(-1).exp() for k in range(3)]).mean(0).log()
    torch.testing.assert_close(vae.p_z().log_prob(z), by_hand)
    with torch.no_grad():
        vae.encoder.net[-1].bias += 0.5
    assert ((vae.p_z().log_prob(z) - by_hand).abs() > 1e-3).all()


def test_vamp_refuses_encoders_without_a_posterior_for_its_inputs(unchecked):
    prior = priors.Vamp(2, SHAPE, 3)
    with pytest.raises(ValueError, match=r"^classes must be 0 for the vamp prior.* got 10$"):
        prior(encoders.MLP(SHAPE, 2, [5], "tanh", classes=10))
    encoder = encoders.MLP(SHAPE, 2, [5], "tanh")
    encoder.amortised = False
    with pytest.raises(ValueError, match=r"^encoder must compute q\(z \| x\) from x alone .* got MLP$"):
        prior(encoder)
    with pytest.raises(ValueError, match=r"^shape must be the encoder's for the vamp prior"):
        prior(encoders.MLP([6], 2, [5], "tanh"))


def test_a_learned_prior_fits_better():
    """Given a posterior, the KL is least for the prior nearest to its mean over the data: (1/n) sum_i q(z | x_i)."""
    vae, batch = make_vae("mixture"), make_batch()
    with torch.no_grad():
        vae.encoder.net[-1].weight *= 5
    q = vae.encoder(batch)
    mu, sigma, eps = q.mu.detach(), q.sigma.detach(), randn(4000, 6, 2)
    q = DiagonalNormal(mu, sigma)
    z = reparameterise(q, eps)
    aggregate = MixtureOf(torch.full((6,), -math.log(6)).double(), q)
    least = (q.log_prob(z) - aggregate.log_prob(z)).mean(1)  # [V]
    adam = torch.optim.Adam(vae.prior.parameters(), 0.05)
    for _ in range(200):
        adam.zero_grad()
        loss = -vae.p_z().log_prob(z[:200]).mean()
        loss.backward()
        adam.step()
    with torch.no_grad():
        fitted = (q.log_prob(z) - vae.p_z().log_prob(z)).mean(1)
        standard = (q.log_prob(z) - StandardNormal(2, DOUBLE).log_prob(z)).mean(1)

    def above(a, b):
        return (a - b).mean() / ((a - b).std() / len(a) ** 0.5)

    assert above(standard, fitted) > 10 and above(fitted, least) > -4
