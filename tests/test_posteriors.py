"""The kinds of q(z | x): densities and KLs against torch's, the identity (3)-(4) for any normal q, Definition 1's gap
for a diagonal one, and the change of variables that makes a flow a density."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import jacrev

from vae_lab import likelihoods, posteriors, priors
from vae_lab.distributions import DiagonalNormal, FullNormal, StandardNormal, centre, reparameterise
from vae_lab.interfaces import Batch, Decoder, Encoder
from vae_lab.objectives import Elbo
from vae_lab.vae import VAE

DOUBLE = torch.zeros((), dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_full(d=3, n=5, seed=0):
    part = posteriors.Full(d)
    return part(0.7 * randn(n, part.size, seed=seed))


def make_flow(d, transforms=3, hidden=(16,), seed=0):
    """A flow far from a normal: its weights are larger than at first."""
    torch.manual_seed(seed)
    part = posteriors.Flow(d, transforms, list(hidden)).double()
    with torch.no_grad():
        for weight in part.parameters():
            weight *= 2
    return part


# Full covariance


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_full_has_one_number_for_each_place(d):
    """d for mu; on and below L's diagonal each number once, and on the diagonal its exponential."""
    part = posteriors.Full(d)
    numbers = torch.arange(1, part.size - d + 1, dtype=torch.float64) / 10
    q = part(torch.cat([100 + torch.arange(d, dtype=torch.float64), numbers]))
    assert torch.equal(q.mean, 100 + torch.arange(d, dtype=torch.float64))
    rows, columns = torch.tril_indices(d, d, -1)
    found = torch.cat([q.L[rows, columns], q.L.diagonal().log()]).sort().values
    torch.testing.assert_close(found, numbers)
    assert not q.L.triu(1).any()


def test_full_is_torchs():
    q, z = make_full(), randn(4, 5, 3, seed=1)
    torchs = MultivariateNormal(q.mu, scale_tril=q.L)
    torch.testing.assert_close(q.log_prob(z), torchs.log_prob(z))
    torch.testing.assert_close(q.mean, torchs.mean)
    torch.testing.assert_close(q.variance, torchs.variance)
    standard = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    torch.testing.assert_close(kl_divergence(q, StandardNormal(3, DOUBLE)), kl_divergence(torchs, standard))


def test_full_samples_have_its_covariance():
    """z = mu + L eps is linear, so its values at 0 and at the axes say everything."""
    q = make_full(n=1)
    assert torch.equal(reparameterise(q, torch.zeros(1, 3).double()), q.mu)
    columns = reparameterise(q, torch.eye(3).double()[:, None])[:, 0] - q.mu
    torch.testing.assert_close(columns.T @ columns, (q.L @ q.L.mT)[0])


def test_full_with_a_diagonal_is_the_diagonal():
    mu, sigma, z, eps = randn(5, 3), randn(5, 3, seed=1).exp(), randn(4, 5, 3, seed=2), randn(4, 5, 3, seed=3)
    full, diagonal, p = FullNormal(mu, sigma.diag_embed()), DiagonalNormal(mu, sigma), StandardNormal(3, DOUBLE)
    torch.testing.assert_close(full.log_prob(z), diagonal.log_prob(z))
    torch.testing.assert_close(reparameterise(full, eps), reparameterise(diagonal, eps))
    torch.testing.assert_close(kl_divergence(full, p), kl_divergence(diagonal, p))


# (3), (4), Definition 1: a linear decoder, where everything has a closed form


class LinearGaussian:
    """x = W z + b + noise of variance s2: log p, the exact posterior and the ELBO of a normal q."""

    def __init__(self, D=7, d=3, s2=0.3):
        self.W, self.b, self.s2, self.d = randn(D, d), randn(D, seed=1), s2, d
        self.x = randn(4, D, seed=2)
        covariance = self.W @ self.W.T + s2 * torch.eye(D).double()
        self.log_p = MultivariateNormal(self.b, covariance).log_prob(self.x)  # [B]
        # p(z | x) = N(Lambda^-1 W^T (x - b) / s2, Lambda^-1)
        self.Lambda = torch.eye(d).double() + self.W.T @ self.W / s2
        self.mu = torch.linalg.solve(self.Lambda, self.W.T @ (self.x - self.b).T / s2).T  # [B, d]

    def elbo(self, q, covariance):
        """E_q log p(x | z) - KL(q || p), with E_q ||x - f(z)||^2 = ||x - f(mu)||^2 + tr(W cov W^T)."""
        sse = ((self.x - self.b - q.mean @ self.W.T) ** 2).sum(1)
        spread = (self.W @ covariance @ self.W.T).diagonal(dim1=-2, dim2=-1).sum(-1)
        rec = -0.5 * ((sse + spread) / self.s2 + self.W.shape[0] * math.log(2 * math.pi * self.s2))
        return rec - kl_divergence(q, StandardNormal(self.d, DOUBLE))

    def posterior(self):
        return MultivariateNormal(self.mu, precision_matrix=self.Lambda)


def full_of(q):
    return FullNormal(q.mean, q.scale_tril.expand(*q.batch_shape, -1, -1))


def test_the_exact_posterior_closes_the_gap():
    """A posterior that is correlated is reached by Full, and not by any Diagonal."""
    model = LinearGaussian()
    q = full_of(model.posterior())
    assert (q.L.tril(-1).abs() > 1e-3).any()
    torch.testing.assert_close(model.elbo(q, q.L @ q.L.mT), model.log_p, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_log_p_is_elbo_plus_kl_to_the_posterior(seed):
    """(3), (4), for a q of any covariance."""
    model, q = LinearGaussian(), make_full(n=4, seed=seed)
    gap = kl_divergence(MultivariateNormal(q.mu, scale_tril=q.L), model.posterior())
    assert (gap > 0.01).all()
    torch.testing.assert_close(model.elbo(q, q.L @ q.L.mT) + gap, model.log_p, rtol=0, atol=1e-10)


def test_the_least_gap_of_a_diagonal_posterior():
    """1/2 (sum_j log Lambda_jj - log det Lambda): the gap is convex in mu and log sigma, and its gradient is 0."""
    model = LinearGaussian()
    least = 0.5 * (model.Lambda.diagonal().log().sum() - model.Lambda.logdet())
    assert least > 0.1
    mu = model.mu.clone().requires_grad_()
    log_sigma = (-0.5 * model.Lambda.diagonal().log()).expand(4, -1).clone().requires_grad_()
    q = DiagonalNormal(mu, log_sigma.exp())
    gap = model.log_p - model.elbo(q, q.variance.diag_embed())
    torch.testing.assert_close(gap, least.expand(4), rtol=0, atol=1e-10)
    for gradient in torch.autograd.grad(gap.sum(), (mu, log_sigma)):
        assert gradient.abs().max() < 1e-10


def test_no_gap_where_the_columns_of_W_are_orthogonal():
    model = LinearGaussian()
    # the same p(x), with z rotated
    model.W = model.W @ torch.linalg.eigh(model.Lambda).eigenvectors
    Lambda = torch.eye(3).double() + model.W.T @ model.W / model.s2
    mu = torch.linalg.solve(Lambda, model.W.T @ (model.x - model.b).T / model.s2).T
    q = DiagonalNormal(mu, (Lambda.diagonal() ** -0.5).expand(4, -1))
    torch.testing.assert_close(model.elbo(q, q.variance.diag_embed()), model.log_p, rtol=0, atol=1e-10)


# Flows


@pytest.mark.parametrize("d", [2, 3, 5])
def test_a_flow_is_a_change_of_variables(d):
    """log q(z) = log N(eps | 0, I) - log |det dz/deps| at z = z(eps)."""
    part = make_flow(d)
    for i in range(4):
        q, eps = part(randn(part.size, seed=i)), randn(1, d, seed=10 + i)
        jacobian = jacrev(lambda e, q=q: reparameterise(q, e))(eps).reshape(d, d)
        by_hand = StandardNormal(d, DOUBLE).log_prob(eps) - jacobian.det().abs().log()
        torch.testing.assert_close(q.log_prob(reparameterise(q, eps)), by_hand, rtol=1e-10, atol=1e-10)


def test_a_flow_integrates_to_one():
    """The trapezium rule's error is of the order of step^2, as the density has the kinks of relu."""
    part = make_flow(2)
    q = part(0.5 * randn(part.size))
    low, high = reparameterise(q, randn(2000, 2)).aminmax(dim=0)
    low, high, n = low - (high - low), high + (high - low), 500
    step = (high - low) / n
    z = torch.cartesian_prod(*(low[j] + step[j] * torch.arange(n, dtype=torch.float64) for j in range(2)))
    with torch.no_grad():
        total = q.log_prob(z).exp().sum() * step.prod()
    assert total.item() == pytest.approx(1, abs=step.max().item() ** 2)


def test_a_flow_depends_on_x():
    part = make_flow(2)
    h, eps = randn(3, part.size), randn(4, 3, 2)
    z = reparameterise(part(h), eps)
    for i in range(3):
        torch.testing.assert_close(z[:, i], reparameterise(part(h[i]), eps[:, i]))
    alike = h.clone()
    alike[:, :4] = h[0, :4]  # mu and sigma the same: what differs is the shape
    z = reparameterise(part(alike), eps[:, :1].expand(-1, 3, -1))
    assert (z[:, 0] - z[:, 1]).abs().max() > 0.1


def test_the_centre_is_the_mean_or_the_image_of_0():
    part = make_flow(2)
    q = part(randn(3, part.size))
    torch.testing.assert_close(centre(q), reparameterise(q, torch.zeros(1, 3, 2).double())[0])
    with pytest.raises(NotImplementedError):
        q.mean  # noqa: B018
    assert torch.equal(centre(make_full()), make_full().mu)
    assert torch.equal(centre(StandardNormal(2, DOUBLE)), torch.zeros(2).double())


def test_a_flow_needs_two_dimensions_and_zuko(monkeypatch):
    with pytest.raises(ValueError, match=r"^d must be at least 2 for a flow.* got 1$"):
        posteriors.Flow(1, 3, [8])
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    with pytest.raises(ValueError, match=r"pip install 'vae-lab\[flow\]'"):
        posteriors.Flow(2, 3, [8])
    posteriors.Full(2)  # which needs it not


class Bend(Decoder):
    """f(z) = z_1 - z_0^2: given x, z lies along a parabola."""

    d, shape = 2, (1,)

    def forward(self, z, label=None):
        return z[..., 1:] - z[..., :1] ** 2


class Alone(Encoder):
    """The same posterior for every x, of free numbers."""

    d, shape = 2, (1,)

    def __init__(self, posterior):
        super().__init__()
        self.posterior, self.h = posterior, nn.Parameter(torch.zeros(posterior.size))

    def forward(self, batch):
        return self.posterior(self.h.expand(len(batch.x), -1))


def fitted(posterior, steps):
    """The posterior of x = 0 under `Bend`, fitted by maximising the ELBO: log p(x, z) - log q(z) at many samples."""
    vae = VAE(Alone(posterior), Bend(), likelihoods.Gaussian([1], 0.05), priors.StandardNormal(2)).double()
    batch, generator = Batch(torch.zeros(1, 1).double(), torch.zeros(1).long()), torch.Generator().manual_seed(0)
    adam, objective = torch.optim.Adam(vae.encoder.parameters(), 1e-2), Elbo(V=128)
    for _ in range(steps):
        adam.zero_grad()
        objective(vae, batch, torch.randn(128, 1, 2, generator=generator).double()).loss.sum().backward()
        adam.step()
    with torch.no_grad():
        q = vae.encoder(batch)
        z = reparameterise(q, randn(20_000, 1, 2))
        return log_joint(vae, batch, z) - q.log_prob(z)[:, 0], vae, batch


def log_joint(vae, batch, z):
    return (vae.p_x(z).log_prob(batch.x) + vae.p_z().log_prob(z))[:, 0]


def test_a_flow_follows_a_bent_posterior():
    """Its ELBO is above that of normals, by many standard errors, and below log p, by a grid."""
    torch.manual_seed(0)
    diagonal, vae, batch = fitted(posteriors.Diagonal(2), 400)
    full, flow = fitted(posteriors.Full(2), 400)[0], fitted(posteriors.Flow(2, 3, [16]), 400)[0]
    for normal in (diagonal, full):
        better = flow - normal  # at the same noises
        assert better.mean() > 10 * better.std() / len(better) ** 0.5
    axis = torch.arange(-8, 8, 0.02, dtype=torch.float64)
    with torch.no_grad():
        log_p = log_joint(vae, batch, torch.cartesian_prod(axis, axis)[:, None]).logsumexp(0) + 2 * math.log(0.02)
    assert flow.mean() < log_p + 4 * flow.std() / len(flow) ** 0.5


def test_the_kl_by_samples_is_the_closed_one():
    """For a posterior that has one: Elbo's two ways to it agree within the sampling error."""
    q, p = make_full(), StandardNormal(3, DOUBLE)
    z = reparameterise(q, randn(20_000, 5, 3))
    ratios = q.log_prob(z) - p.log_prob(z)
    assert ((ratios.mean(0) - kl_divergence(q, p)).abs() < 4.5 * ratios.std(0) / len(ratios) ** 0.5).all()
