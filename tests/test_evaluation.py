"""Estimates of log p(x) and measures of a posterior, against models whose answers are known exactly."""

import math
import os
import subprocess
import sys

import pytest
import torch
from test_equations import curve
from test_oracles import synthetic
from torch.distributions import MultivariateNormal, kl_divergence

from vae_lab import decoders, encoders, likelihoods, posteriors, priors
from vae_lab.distributions import DiagonalNormal, ProductBernoulli, reparameterise
from vae_lab.evaluation import annealing, chunks
from vae_lab.evaluation.annealing import ais, bdmc, simulate
from vae_lab.evaluation.estimators import LogMeanExp, bound, importance, naive_mc
from vae_lab.evaluation.images import images
from vae_lab.evaluation.measures import activity, aggregate, collapsed, gaps, identity, information
from vae_lab.evaluation.protocol import Protocol, Score, comparable, tabulate
from vae_lab.evaluation.refinement import refine, with_encoder
from vae_lab.interfaces import Batch, Decoder, Encoder, Prior
from vae_lab.oracles import PPCA
from vae_lab.vae import VAE


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def batch_of(x, label=None):
    return Batch(x, torch.arange(len(x)), label)


def probabilistic_pca(d=3, s2=0.1, stretch=1.0):
    """The best linear VAE of the synthetic data, its posterior's sigma stretched; the data; their log p."""
    x = synthetic()
    ppca, D = PPCA.of(x), x.shape[1]
    vae = VAE(
        encoders.Linear([D], d), decoders.Linear([D], d), likelihoods.Gaussian([D], s2), priors.StandardNormal(d)
    ).double()
    (W, b), (A, a, sigma) = ppca.decoder(d, s2), ppca.encoder(d, s2)
    with torch.no_grad():
        vae.likelihood.s2 = torch.tensor(s2, dtype=torch.float64)
        vae.decoder.f.weight.copy_(W), vae.decoder.f.bias.copy_(b)
        vae.encoder.mu.weight.copy_(A), vae.encoder.mu.bias.copy_(a)
        vae.encoder.log_sigma.copy_((stretch * sigma).log())
    return vae, x, ppca.log_prob(x, d, s2)


def agrees(estimate, exact):
    """Whether standardised errors look like draws of N(0, 1): each below 5, and their mean 4 standard errors off 0 at
    most (an estimate's own bias, about error / 2 of its standard errors, being taken out)."""
    score = (estimate.log_p - exact + estimate.error**2 / 2) / estimate.error
    assert score.abs().max() < 5, score
    assert score.mean().abs() < 4 / len(score) ** 0.5, score.mean()


# Sums of weights


def test_log_mean_exp_in_pieces():
    log_w = torch.cat([randn(50, 3) * 5, torch.full((2, 3), -torch.inf)]) + torch.tensor([0.0, 1e4, -1e4])
    whole, pieces = LogMeanExp(log_w, 3), LogMeanExp(log_w, 3)
    whole.add(slice(None), log_w)
    for piece in log_w.flip(0).split(7):
        pieces.add(slice(0, 2), piece[:, :2])
        pieces.add(slice(2, 3), piece[:, 2:])
    for a, b in zip(whole.estimate(), pieces.estimate(), strict=True):
        torch.testing.assert_close(a, b)
    log_p, error, ess = whole.estimate()
    w = (log_w - log_w.amax(0)).exp()
    torch.testing.assert_close(log_p, log_w.logsumexp(0) - math.log(len(log_w)))
    torch.testing.assert_close(error, w.std(0) / w.mean(0) / len(w) ** 0.5)
    torch.testing.assert_close(ess, w.sum(0) ** 2 / (w**2).sum(0))


# Importance sampling


@pytest.mark.parametrize("K", [1, 2, 100])
def test_on_the_exact_posterior_all_weights_are_equal(K):
    vae, x, exact = probabilistic_pca()
    found = importance(vae, batch_of(x[:40]), K, rng())
    elbo = bound(vae, batch_of(x[:40]), randn(2000, 40, 3))
    torch.testing.assert_close(found.log_p, exact[:40])  # whatever K
    torch.testing.assert_close(found.ess, torch.full_like(exact[:40], K))
    assert (found.error < 1e-6).all() if K > 1 else found.error.isinf().all()
    assert ((elbo.elbo - exact[:40]) / elbo.error).abs().max() < 5


def test_importance_sampling_within_its_standard_errors():
    vae, x, exact = probabilistic_pca(stretch=1.5)
    agrees(importance(vae, batch_of(x[:60]), 2000, rng()), exact[:60])


def test_importance_sampling_by_quadrature():
    vae, batch = curve()
    found = importance(vae, Batch(batch.x.expand(30, -1), torch.arange(30)), 5000, rng())
    agrees(found, torch.full((30,), -2.0211260, dtype=torch.float64))


def test_the_encoder_runs_once_a_datum():
    vae, x, _ = probabilistic_pca()
    seen = []
    vae.encoder.register_forward_hook(lambda _, args, q: seen.append(len(args[0].x)))
    importance(vae, batch_of(x[:50]), 300, rng())
    tried = 1 + 1 + 2  # for the density, and for the memory
    assert sum(seen) == 50 + tried


# The prior


def test_naive_mc_and_how_far_it_errs():
    """(1): CV^2 = E[p^2] / p^2 - 1 with E[p^2] = (4 pi s2)^(-D/2) N(x | b, W W^T + s2/2 I); error^2 = CV^2 / m."""
    s2, m = 1.0, 20_000
    vae, x, exact = probabilistic_pca(d=1, s2=s2)
    near = exact.argsort(descending=True)[:40]
    found = naive_mc(vae, batch_of(x[near]), m, rng())
    agrees(found, exact[near])
    W, b, D = vae.decoder.f.weight.detach(), vae.decoder.f.bias.detach(), x.shape[1]
    half = MultivariateNormal(b, W @ W.T + s2 / 2 * torch.eye(D, dtype=W.dtype))
    cv2 = (half.log_prob(x[near]) - D / 2 * math.log(4 * math.pi * s2) - 2 * exact[near]).exp() - 1
    # the sample's CV^2 has itself an error: over 40 data the mean ratio is 1 within 4 of its standard errors
    for ratio in (found.error**2 * m / cv2, m / found.ess / (1 + cv2)):
        assert (ratio.mean() - 1).abs() < 4 * ratio.std() / len(near) ** 0.5 + 1e-3


def test_draws_of_the_prior_are_each_datums_own():
    vae, x, _ = probabilistic_pca(d=1, s2=1.0)
    same = naive_mc(vae, batch_of(x[:1].expand(10, -1)), 100, rng()).log_p
    assert len(same.unique()) == 10


# Annealing


def test_ais_within_its_standard_errors():
    vae, x, exact = probabilistic_pca()
    agrees(ais(vae, batch_of(x[:32]), 60, 32, rng(), leapfrog=5), exact[:32])


def test_ais_by_quadrature():
    vae, batch = curve()
    found = ais(vae, Batch(batch.x.expand(20, -1), torch.arange(20)), 40, 64, rng(), leapfrog=5)
    agrees(found, torch.full((20,), -2.0211260, dtype=torch.float64))


def test_bdmc_brackets_the_exact_value():
    """The mean over data is on the wrong side of log p at most by chance; few temperatures make a wide bracket."""
    vae, _, _ = probabilistic_pca(d=2, s2=0.05)
    W, b = vae.decoder.f.weight.detach(), vae.decoder.f.bias.detach()
    p = MultivariateNormal(b, W @ W.T + vae.likelihood.s2 * torch.eye(len(b), dtype=b.dtype))
    width = []
    for temperatures in (5, 50):
        exact = p.log_prob(simulate(vae, 48, rng(1))[0].x)
        lower, upper = bdmc(vae, 48, temperatures, 16, rng(1), leapfrog=5)
        for below, above in ((lower.log_p, exact), (exact, upper.log_p)):
            gap = above - below
            assert gap.mean() > -4 * gap.std() / 48**0.5
        width.append((upper.log_p - lower.log_p).mean())
    assert width[1] < width[0]


def test_hamiltonian_transitions_leave_the_target_as_it_is():
    """From exact posterior samples of one datum, the moments stay; with a bad step too, which is accepted less."""
    vae, x, _ = probabilistic_pca()
    data, C = batch_of(x[:1]), 20_000
    q = vae.encoder(data)
    z = reparameterise(q, randn(C, 1, 3)).detach()
    target = annealing._target(vae, data, 10**6)
    shares = []
    for step in (0.02, 0.28):  # leapfrogs diverge from twice the least sigma on, 0.31
        at = target(z)
        at, accepted = annealing.transition(
            target, at, torch.ones((), dtype=z.dtype), torch.tensor([step], dtype=z.dtype), 5, rng(2)
        )
        eps = ((at.z - q.mu) / q.sigma).detach()[:, 0]
        assert eps.mean(0).abs().max() < 5 / C**0.5 and (eps.var(0) - 1).abs().max() < 5 * (2 / C) ** 0.5
        assert (at.z != z).any()
        shares.append(accepted.mean())
    assert shares[0] > shares[1]


def test_the_schedule_is_a_sigmoid_from_0_to_1():
    betas = annealing.schedule(10, batch_of(randn(1, 2)))
    assert betas[0] == 0 and betas[-1] == 1 and (betas.diff() > 0).all()
    torch.testing.assert_close(betas, 1 - betas.flip(0))
    assert betas.diff().argmax() in (4, 5)


@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian([4], 0.3), likelihoods.Bernoulli([4]),
                                        likelihoods.Laplace([4], 0.5)], ids=["g", "b", "l"])  # fmt: skip
def test_draws_of_x_have_the_likelihoods_moments(likelihood):
    p = likelihood(torch.tensor([-1.0, 0.2, 0.5, 3.0]).expand(20_000, -1))
    before = torch.random.get_rng_state()
    x = annealing.draw(p, rng())
    assert torch.equal(torch.random.get_rng_state(), before) and torch.equal(x, annealing.draw(p, rng()))
    assert ((x.mean(0) - p.mean[0]) / (p.variance[0] / len(x)).sqrt()).abs().max() < 5
    fourth = ((x - p.mean) ** 2).std(0) / len(x) ** 0.5
    assert ((x.var(0) - p.variance[0]) / fourth).abs().max() < 5


# Memory


def decoded(vae):
    """How many z the decoder is given at a time."""
    seen = []
    vae.decoder.register_forward_hook(lambda _, args, eta: seen.append(args[0].shape[:-1].numel()))
    return seen


ESTIMATES = {
    "importance": lambda vae, batch, memory: importance(vae, batch, 70, rng(), memory),
    "naive_mc": lambda vae, batch, memory: naive_mc(vae, batch, 70, rng(), memory),
    "ais": lambda vae, batch, memory: ais(vae, batch, 6, 8, rng(), 2, memory),
    "bound": lambda vae, batch, memory: bound(vae, batch, randn(9, len(batch.x), 3), memory),
    "information": lambda vae, batch, memory: information(vae, batch, 3, rng(), memory)[:6],
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_memory_bounds_what_is_computed_at_a_time_and_not_the_result(name):
    vae, x, _ = probabilistic_pca(stretch=1.5)
    batch, seen = batch_of(x[:37]), decoded(vae)
    large = ESTIMATES[name](vae, batch, 2**30)
    most = max(seen)
    seen.clear()
    with pytest.raises(ValueError, match=r"^memory must be at least") as refused:
        ESTIMATES[name](vae, batch, 8)
    least = int(str(refused.value).split()[5])
    seen.clear()
    small = ESTIMATES[name](vae, batch, 4 * least)
    assert max(seen) <= 8 < most  # a datum costs half of `least` or more, if anything is counted rightly
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_rows_within_counts_what_operators_allocate():
    x = torch.zeros(10, 256)
    batch = batch_of(x)

    def work(data):
        y = data.x * 2  # 1024 bytes a datum
        y.view(-1).add_(1)  # nothing
        return torch.ones(1024) * y.sum()  # 4096 + 4 + 4096 bytes

    assert chunks.allocated(work, batch) == 10 * 1024 + 2 * 4096 + 4
    constant = 2 * 4096 + 4
    for n in (1, 7):
        assert chunks.rows_within(constant + n * 1024 + 1023, batch, work) == n
    with pytest.raises(ValueError, match=rf"^memory must be at least {constant + 1024} bytes for this model, got 9000"):
        chunks.rows_within(9000, batch, work)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Conv", "MLP"])
def test_peak_memory(kind):
    """A fresh process needs no more than it may, however many samples there are."""
    code = f"""
import re, torch
from pathlib import Path
from vae_lab import decoders, encoders, likelihoods, priors
from vae_lab.evaluation.estimators import importance
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE
torch.set_num_threads(1)
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
D, widths = [1, 28, 28], [32, 64] if "{kind}" == "Conv" else [500]
vae = VAE(encoders.{kind}(D, 8, widths, "tanh"), decoders.{kind}(D, 8, widths, "tanh"), likelihoods.Bernoulli(D),
          priors.StandardNormal(8))
batch = Batch(torch.rand(4, *D), torch.arange(4))
importance(vae, batch, 2, memory=2**20)  # the libraries' own buffers
before = peak()
importance(vae, batch, 3000, memory=2**25)
print(peak() - before)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 2**25


# Any kind of part


class Shapeless(torch.distributions.Distribution):
    """It can be sampled, and that is all."""

    def __init__(self, d):
        super().__init__(torch.Size(), torch.Size([d]), validate_args=False)


class WithoutDensity(Prior):
    def __init__(self, d):
        super().__init__()
        self.d = d

    def forward(self, encoder):
        return Shapeless(self.d)


def test_a_prior_without_a_density():
    vae, x, _ = probabilistic_pca()
    vae.prior = WithoutDensity(3)
    for estimate in ("importance", "ais", "information"):
        with pytest.raises(ValueError, match=r"^prior must have a density \(log_prob\), got Shapeless without one$"):
            ESTIMATES[estimate](vae, batch_of(x[:4]), 2**30)


def posterior(kind, d):
    if kind == "Flow":
        pytest.importorskip("zuko")
        return posteriors.Flow(d, 2, [8])
    return getattr(posteriors, kind)(d)


@pytest.mark.parametrize("prior", ["Mixture", "Vamp"])
@pytest.mark.parametrize("kind", ["Diagonal", "Full", "Flow"])
def test_any_posterior_and_prior(kind, prior):
    """Importance sampling and annealing, which share nothing but p, agree; rate = mutual + marginal on average."""
    torch.manual_seed(0)
    D, d = 4, 2
    p_z = priors.Mixture(d, 3) if prior == "Mixture" else priors.Vamp(d, [D], 3)
    encoder = encoders.MLP([D], d, [8], "tanh", posterior(kind, d))
    vae = VAE(encoder, decoders.MLP([D], d, [8], "tanh"), likelihoods.Gaussian([D], 2.0), p_z).double()
    with torch.no_grad():  # a q that need not be trained to be near: z says little, and no component is far off
        if prior == "Mixture":
            vae.prior.mu.mul_(0.3), vae.prior.log_sigma.fill_(-0.7)
    batch = batch_of(0.3 * randn(24, D))
    a, b = importance(vae, batch, 4000, rng()), ais(vae, batch, 10, 64, rng(), leapfrog=5)
    assert a.ess.min() > 100
    assert ((a.log_p - b.log_p) / (a.error**2 + b.error**2).sqrt()).abs().max() < 5
    found = information(vae, batch, 200, rng())
    difference = found.rate - found.mutual - found.marginal_kl
    assert difference.mean().abs() < 5 * difference.std() / 24**0.5
    assert found.kl_dims is None and found.means.isfinite().all()


def test_labels_go_with_their_data():
    torch.manual_seed(0)
    parts = encoders.MLP([4], 2, [8], "tanh", classes=3), decoders.MLP([4], 2, [8], "tanh", classes=3)
    vae = VAE(*parts, likelihoods.Gaussian([4], 0.5), priors.StandardNormal(2)).double()
    label = torch.arange(40) % 3
    batch, _ = simulate(vae, 40, rng(), label)
    for estimate in (lambda b: importance(vae, b, 50, rng()).log_p, lambda b: ais(vae, b, 3, 4, rng(), 2).log_p):
        small = estimate(batch)
        assert torch.equal(small, estimate(batch))
        assert not torch.allclose(small, estimate(batch._replace(label=label.roll(1))))
    assert bdmc(vae, 5, 3, 4, rng(), 2, label=label[:5]).lower.log_p.isfinite().all()


@pytest.mark.parametrize("name", ["V", "K", "m", "temperatures", "chains", "leapfrog", "n"])
def test_numbers_of_samples(name):
    vae, x, _ = probabilistic_pca()
    batch = batch_of(x[:4])
    wrong = {
        "K": lambda: importance(vae, batch, 0),
        "m": lambda: naive_mc(vae, batch, 0),
        "temperatures": lambda: ais(vae, batch, 0, 4),
        "chains": lambda: ais(vae, batch, 4, 0),
        "leapfrog": lambda: ais(vae, batch, 4, 4, leapfrog=0),
        "n": lambda: bdmc(vae, 0, 4, 4),
        "V": lambda: information(vae, batch, 0),
    }
    with pytest.raises(ValueError, match=f"^{name} must be a whole number >= 1, got 0"):
        wrong[name]()


# Gaps


def lopsided(seed=0):
    """A linear-Gaussian model whose posterior is no diagonal normal, and the best diagonal one, off by a little."""
    D, d, s2 = 6, 3, 0.5
    W, b = randn(D, d, seed=seed), randn(D, seed=seed + 1)
    vae = VAE(
        encoders.Linear([D], d), decoders.Linear([D], d), likelihoods.Gaussian([D], s2), priors.StandardNormal(d)
    ).double()
    M = W.T @ W + s2 * torch.eye(d, dtype=W.dtype)
    with torch.no_grad():
        vae.decoder.f.weight.copy_(W), vae.decoder.f.bias.copy_(b)
        vae.encoder.mu.weight.copy_(torch.linalg.solve(M, W.T))
        vae.encoder.mu.bias.copy_(-torch.linalg.solve(M, W.T) @ b + 0.1)
        vae.encoder.log_sigma.copy_(0.5 * (s2 / M.diagonal()).log())
    posterior = MultivariateNormal(torch.zeros(d, dtype=W.dtype), s2 * torch.linalg.inv(M))
    return vae, simulate(vae, 30, rng(seed))[0], posterior, M / s2


def test_identity():
    """(4): log p - ELBO is KL(q || posterior)."""
    vae, batch, posterior, _ = lopsided()
    parts = identity(bound(vae, batch, randn(4000, 30, 3)), importance(vae, batch, 4000, rng()))
    q = vae.encoder(batch)
    shifted = MultivariateNormal(torch.full((3,), 0.1, dtype=torch.float64), torch.diag(q.sigma[0].detach() ** 2))
    exact = kl_divergence(shifted, posterior)
    assert ((parts.kl - exact) / parts.kl_error).abs().max() < 5
    torch.testing.assert_close(parts.kl, parts.log_p - parts.elbo)


def test_gaps_of_a_linear_model():
    """The best diagonal normal is 1/2 (sum_j log Lambda_jj - log det Lambda) short of log p; phi costs the rest."""
    vae, batch, posterior, precision = lopsided()
    approximation = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    total = kl_divergence(
        MultivariateNormal(
            torch.full((3,), 0.1, dtype=torch.float64), torch.diag(vae.encoder.log_sigma.detach().exp() ** 2)
        ),
        posterior,
    )
    free = refine(vae, batch.x, 300, 0.03, generator=rng())
    log_p = importance(with_encoder(vae, free), batch, 4000, rng())
    found = gaps(vae, free, batch, log_p, 3000, rng())
    for values, errors, exact in (
        (found.approximation, found.approximation_error, approximation),
        (found.amortisation, found.amortisation_error, total - approximation),
    ):
        assert (values.mean() - exact).abs() < 4 * (errors**2).sum().sqrt() / len(values) + 0.01, (values.mean(), exact)


# Information


def test_rate_and_distortion_of_ppca():
    vae, x, _ = probabilistic_pca()
    ppca = PPCA.of(x)
    found = information(vae, batch_of(x), 50, rng())
    assert found.rate.mean().item() == pytest.approx(ppca.rate(3, 0.1), rel=1e-9)  # in closed form
    torch.testing.assert_close(found.kl_dims.sum(-1), found.rate)
    noise = found.distortion.std() / len(x) ** 0.5
    assert (found.distortion.mean() - ppca.distortion(3, 0.1)).abs() < 4 * noise
    difference = found.rate - found.mutual - found.marginal_kl
    assert difference.mean().abs() < 4 * difference.std() / len(x) ** 0.5
    assert found.mutual.max() <= math.log(len(x)) + 1e-9
    torch.testing.assert_close(activity(found.means), 1 - 0.1 / ppca.eigenvalues[:3], rtol=1e-9, atol=1e-9)


def test_information_at_its_extremes():
    vae, x, _ = probabilistic_pca()
    same = information(vae, batch_of(x[:1].expand(20, -1)), 2, rng())
    torch.testing.assert_close(same.mutual, torch.zeros(20, dtype=torch.float64))  # q(z) = q(z | x)
    with torch.no_grad():
        vae.encoder.log_sigma.fill_(-12)
    apart = information(vae, batch_of(x[:20]), 2, rng())
    torch.testing.assert_close(apart.mutual, torch.full((20,), math.log(20), dtype=torch.float64))


def test_aggregate_posterior_by_hand():
    vae, x, _ = probabilistic_pca()
    q, z = vae.encoder(batch_of(x[:11])), randn(5, 3)
    by_hand = torch.stack([q.log_prob(one.expand(11, -1)).exp().mean().log() for one in z])
    torch.testing.assert_close(aggregate(vae, batch_of(x[:11]), z), by_hand.detach())


def test_collapse_by_hand():
    kl = torch.tensor([[0.0, 0.0, 1.0]] * 99 + [[0.0, 1.0, 1.0]])
    assert collapsed(kl, 0.1).tolist() == [True, True, False]
    assert collapsed(kl, 0.1, delta=0.0).tolist() == [True, False, False]
    assert collapsed(kl, 2.0).all()
    with pytest.raises(ValueError, match=r"^epsilon must be a finite number > 0"):
        collapsed(kl, 0.0)


# Images


class Copy(Encoder):
    def __init__(self, shape):
        super().__init__()
        self.shape, self.d = shape, math.prod(shape)

    def forward(self, batch):
        return DiagonalNormal(batch.x.flatten(1), torch.ones_like(batch.x.flatten(1)))


class Shift(Decoder):
    def __init__(self, shape, by):
        super().__init__()
        self.shape, self.d, self.by = shape, math.prod(shape), by

    def forward(self, z, label=None):
        return z.unflatten(-1, self.shape) + self.by


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 11), (1, 28, 20), (1, 3, 5)])
def test_images(shape):
    x = torch.rand(30, *shape, generator=rng()) * 0.8
    d = math.prod(shape)

    def measured(by):
        vae = VAE(Copy(shape), Shift(shape, by), likelihoods.Gaussian(shape, 0.1), priors.StandardNormal(d))
        return images(vae, batch_of(x))

    assert measured(0.0)["mse"] == 0 and measured(0.0)["ssim"] == pytest.approx(1, abs=1e-5)
    off = measured(0.1)
    assert off["mse"] == pytest.approx(0.01, rel=1e-4) and off["psnr"] == pytest.approx(20, abs=1e-2)
    assert off["ssim"] < 1
    with pytest.raises(ValueError, match=r"^images must be \[C, H, W\]"):
        images(probabilistic_pca()[0], batch_of(randn(3, 6)))


# The likelihood's two routes


def test_bernoulli_is_the_same_with_and_without_gradients():
    logits, x = 8 * randn(50, 1, 4, 5), torch.rand(7, 4, 5, generator=rng(), dtype=torch.float64).round()
    x[0] = 0.3
    without = ProductBernoulli(logits, 2).log_prob(x)
    torch.testing.assert_close(without, ProductBernoulli(logits.requires_grad_(), 2).log_prob(x).detach())
    far = torch.tensor([200.0, -200.0], dtype=torch.float64)
    assert ProductBernoulli(far, 1).log_prob(torch.tensor([1.0, 0.0], dtype=torch.float64)).abs() < 1e-80
    assert ProductBernoulli(far, 1).log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64)) == -400


# Protocols

PROTOCOL = Protocol("importance", "Digits", "Raw", "test", 360, "K=1000", "best", 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("estimator", "ais"), ("data", "Mnist"), ("preprocessing", "Dequantised"), ("split", "val"), ("n", 100),
     ("samples", "K=5000"), ("checkpoint", "last"), ("seed", 1)],
)  # fmt: skip
def test_numbers_of_different_protocols_are_not_compared(field, value):
    from dataclasses import replace

    a, b = Score(-1.0, 0.1, PROTOCOL), Score(-2.0, None, replace(PROTOCOL, **{field: value}))
    assert comparable({"one": a, "two": a}) == PROTOCOL
    with pytest.raises(ValueError) as refused:
        comparable({"one": a, "two": a, "three": b})
    old = getattr(PROTOCOL, field)
    assert str(refused.value) == f"{field} must be the same to compare: {old!r} for one, {value!r} for three"
    with pytest.raises(ValueError, match=f"^{field} must be the same"):
        tabulate({"one": {"log_p": a}, "three": {"log_p": b}})


def test_a_table():
    a, b = Score(-1.0, 0.1, PROTOCOL), Score(2.0, None, PROTOCOL)
    table = tabulate({"one": {"log_p": a}, "two": {"log_p": a, "kl": b}})
    assert table == [["", "log_p", "kl"], ["one", "-1.000 ± 0.100", ""], ["two", "-1.000 ± 0.100", "2.000"]]
    with pytest.raises(ValueError, match=r"^scores must hold at least one"):
        comparable({})
