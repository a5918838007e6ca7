"""p(x | z): each normaliser, mean and variance found in another way; the closed-form s2; who may use which data."""

import math
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import logistic
from torch import distributed
from torch.distributions import Categorical, Laplace, Normal
from torch.func import functional_call, stack_module_state, vmap
from torch.multiprocessing import get_context

from vae_lab import decoders, densities, encoders, likelihoods, priors
from vae_lab.data.sources import Digits
from vae_lab.interfaces import Batch
from vae_lab.levels import Levels, count_levels
from vae_lab.objectives import Elbo
from vae_lab.oracles import PPCA
from vae_lab.vae import VAE

INF, DOUBLE, SINGLE = math.inf, torch.float64, torch.float32


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def grid(levels, dtype=DOUBLE):
    return torch.arange(levels, dtype=dtype) / (levels - 1)


# Normalisers, means and variances

DENSITIES = {  # of one value: the likelihood, where its x may lie, and some eta
    "learned": (likelihoods.GaussianLearned([1], 0.3, False), (-INF, INF), [[0.7]]),
    "learned by channel": (likelihoods.GaussianLearned([1, 1, 1], 0.3, True), (-INF, INF), [[[[0.7]]]]),
    "optimal": (likelihoods.GaussianOptimal([1], 0.1).eval(), (-INF, INF), [[0.7]]),
    "per pixel": (likelihoods.GaussianPerPixel([1], 0.1), (-INF, INF), [[[0.7], [h]] for h in (-30.0, 0.2, 5.0)]),
    "laplace": (likelihoods.Laplace([1], 0.3), (-INF, INF), [[0.7]]),
    "continuous bernoulli": (
        likelihoods.ContinuousBernoulli([1]),
        (0, 1),
        [[v] for v in (0.0, 1e-9, -1e-3, 0.19999, 0.2, -0.20001, 3.0, -12.0, 40.0, 90.0, -500.0)],
    ),
}


def integral(f, low, high, centre):
    """By quadrature on both sides of the centre, where f may have an edge, and close to it, where f may be steep."""
    edges = sorted({low, high, *(min(max(centre + s * w, low), high) for w in (0, 0.1, 1, 10) for s in (-1, 1))})
    return sum(quad(f, a, b, epsabs=1e-12, epsrel=1e-12, limit=200)[0] for a, b in pairwise(edges))


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate(name):
    """To 1; with x, to the mean; with the squared distance from it, to the variance."""
    likelihood, (low, high), etas = DENSITIES[name]
    for eta in etas:
        p = likelihood.double()(torch.tensor(eta, dtype=DOUBLE))

        def density(x, p=p):
            return p.log_prob(torch.full(p.event_shape, x, dtype=DOUBLE)).exp().item()

        mean, variance = p.mean.item(), p.variance.item()
        over = partial(integral, low=low, high=high, centre=mean)
        assert over(density) == pytest.approx(1, rel=1e-9)
        assert over(lambda x: x * density(x)) == pytest.approx(mean, rel=1e-9)
        assert over(lambda x, mean=mean: (x - mean) ** 2 * density(x)) == pytest.approx(variance, rel=1e-8)


def masses():
    """A likelihood of one value, and an eta."""
    for levels in (2, 3, 17, 256):
        for scale in (1e-3, 0.1, 20.0):
            for eta in (-4.0, 0.0, 0.4987, 1.0, 30.0):
                p = likelihoods.DiscretisedLogistic([1], scale, levels)
                yield pytest.param(p, torch.tensor([eta]).double(), id=f"logistic-{levels}-{scale}-{eta}")
        yield pytest.param(likelihoods.Categorical([1], levels), 10 * randn(levels, 1), id=f"categorical-{levels}")


@pytest.mark.parametrize(("likelihood", "eta"), list(masses()))
def test_masses_sum(likelihood, eta):
    """To 1; with x, to the mean; with the squared distance from it, to the variance."""
    x = grid(len(eta) if len(eta) > 1 else likelihood.levels)
    p = likelihood.double()(eta)
    mass = p.log_prob(x[:, None]).exp().detach()
    assert mass.sum().item() == pytest.approx(1, rel=1e-11)  # scale 1e-3 magnifies the rounding of x a thousand times
    torch.testing.assert_close(p.mean[0], mass @ x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(p.variance[0], mass @ (x - p.mean) ** 2, rtol=1e-9, atol=1e-12)
    assert likelihood.grid.check(x).all() and likelihood.support is likelihood.grid


# Each value by itself, and the sum over a datum


def test_gaussians_are_torchs():
    eta, x = randn(5, 2, 3, 2), randn(5, 2, 3, 2, seed=1)
    s2 = torch.tensor([0.1, 3.0], dtype=DOUBLE)[:, None, None]
    p = likelihoods.GaussianLearned([2, 3, 2], 0.3, True).double()
    p.log_s2.data = s2.log()
    torch.testing.assert_close(p(eta).log_prob(x), Normal(eta, s2.sqrt()).log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(p(eta).variance, s2.expand_as(eta))

    h = randn(5, 2, 3, 2, seed=2)
    p = likelihoods.GaussianPerPixel([2, 3, 2], 0.01)(torch.stack([eta, h], 1))
    sigma = (0.01 + (1 + h.exp()).log()).sqrt()
    torch.testing.assert_close(p.log_prob(x), Normal(eta, sigma).log_prob(x).sum((1, 2, 3)))


def test_laplace_is_torchs():
    eta, x = randn(5, 2, 3), randn(4, 5, 2, 3, seed=1)
    expected = Laplace(eta, torch.tensor(0.3).double()).log_prob(x).sum((-2, -1))
    torch.testing.assert_close(likelihoods.Laplace([2, 3], 0.3).double()(eta).log_prob(x), expected, rtol=1e-6, atol=0)


def test_categorical_is_torchs():
    eta, k = 3 * randn(4, 5, 7, 2, 3), torch.randint(7, (5, 2, 3), generator=torch.Generator().manual_seed(0))
    expected = Categorical(logits=eta.movedim(2, -1)).log_prob(k).sum((-2, -1))
    p = likelihoods.Categorical([2, 3], 7)(eta)
    torch.testing.assert_close(p.log_prob(k.double() / 6), expected)
    torch.testing.assert_close(p.log_prob(k.float() / 6), expected)


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_discretised_logistic_is_a_difference(levels):
    """Of scipy's distribution function at the middles between levels."""
    mu, x = randn(7).sigmoid(), grid(levels)
    edges = torch.cat([torch.tensor([-INF]), (x[1:] + x[:-1]) / 2, torch.tensor([INF])])
    cdf = torch.from_numpy(logistic.cdf(edges[:, None], mu, 0.2))
    p = densities.DiscretisedLogistic(mu, torch.tensor(0.2, dtype=DOUBLE), levels)
    torch.testing.assert_close(p.log_prob(x[:, None]), cdf.diff(dim=0).log(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1e4])
def test_discretised_logistic_far_out(scale):
    """Where sigmoids are 0 or 1 in float32, log p and its gradients are the tails' straight lines."""
    eta = torch.tensor([-1e20, -1e3, -2.0, 0.3, 2.0, 1e3, 1e20]).requires_grad_()
    p = likelihoods.DiscretisedLogistic([7], scale, 256)
    log_p = densities.DiscretisedLogistic(eta, p.log_scale.exp(), 256).log_prob(grid(256, SINGLE)[:, None])
    assert log_p.isfinite().all() and (log_p <= 0).all()
    gradients = torch.autograd.grad(log_p.sum(), [eta, p.log_scale], retain_graph=True)
    assert all(g.isfinite().all() for g in gradients)
    if scale < 1:
        slope = torch.autograd.grad(log_p[100].sum(), eta)[0] * scale
        torch.testing.assert_close(slope[[0, 1, 5, 6]], torch.tensor([1.0, 1, -1, -1]))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_continuous_bernoulli_is_an_exponential_family(dtype):
    """d/deta log p = x - E x and d2/deta2 log p = -Var x, for any eta."""
    ends = [0.0, 1e-30, 1e-8, 1e-3, 0.199999, 0.2, 0.200001, 1.0, 15.0, 17.0, 100.0, 1e4]
    eta = torch.tensor([s * v for v in ends for s in (-1, 1)], dtype=dtype).requires_grad_()
    p, x = (
        densities.ContinuousBernoulli(eta),
        torch.rand(len(eta), generator=torch.Generator().manual_seed(0)).to(dtype),
    )
    [slope] = torch.autograd.grad(p.log_prob(x).sum(), eta, create_graph=True)
    [bend] = torch.autograd.grad(slope.sum(), eta)
    eps = torch.finfo(dtype).eps  # 1/u cancels to 1 part in u, 1/u^2 to 1 in u^2: at u = 0.1 this costs two digits
    torch.testing.assert_close(slope, x - p.mean, rtol=0, atol=100 * eps)
    torch.testing.assert_close(bend, -p.variance, rtol=0, atol=1000 * eps)
    assert (p.mean >= 0).all() and (p.mean <= 1).all() and (p.variance > 0).all()


def test_continuous_bernoulli_is_torchs_where_that_is_right():
    logits, x = 4 * randn(200), randn(200, seed=1).sigmoid()
    torchs = torch.distributions.ContinuousBernoulli(logits=logits)
    p = densities.ContinuousBernoulli(logits)
    torch.testing.assert_close(p.log_prob(x), torchs.log_prob(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.mean, torchs.mean, rtol=1e-9, atol=1e-9)
    far = torch.tensor(60.0, dtype=DOUBLE)  # log p(1) = log(60 / (1 - exp(-60)))
    one = torch.ones_like(far)
    assert densities.ContinuousBernoulli(far).log_prob(one).item() == pytest.approx(math.log(60), rel=1e-12)
    assert (torch.distributions.ContinuousBernoulli(logits=far).log_prob(one) - math.log(60)).abs() > 0.1


# s2


def linear_vae(likelihood, d=3):
    torch.manual_seed(0)
    S = likelihood.shape
    return VAE(encoders.Linear(S, d), decoders.Linear(S, d), likelihood, priors.StandardNormal(d)).double()


@cache
def digits():
    x = Digits([1, 8, 8], 0, 0).load().train.x.double() / 16
    return Batch(x, torch.arange(len(x)))


@pytest.mark.parametrize("s2", [0.01, 0.5, 3.0])
def test_s2_is_a_weight_of_the_kl(s2):
    """2 s2 ELBO = -(SSE + beta KL) - s2 D log(2 pi s2), beta = 2 s2: the gradients agree up to the factor."""
    vae, eps = linear_vae(likelihoods.Gaussian([4], s2)), randn(5, 6, 3)
    batch = Batch(randn(6, 4, seed=1), torch.arange(6))
    vae.likelihood.s2 = torch.tensor(s2, dtype=DOUBLE)  # which float32 has only nearly
    terms, beta = Elbo(5)(vae, batch, eps), 2 * s2
    q = vae.encoder(batch)
    sse = ((vae.decoder(q.mu + q.sigma * eps) - batch.x) ** 2).sum(-1).mean(0)
    loss = sse + beta * terms.kl
    torch.testing.assert_close(2 * s2 * terms.elbo, -loss - s2 * 4 * math.log(2 * math.pi * s2))
    by_elbo = torch.autograd.grad(terms.loss.sum(), list(vae.parameters()), retain_graph=True)
    by_beta = torch.autograd.grad(loss.sum(), list(vae.parameters()))
    for a, b in zip(by_elbo, by_beta, strict=True):
        torch.testing.assert_close(2 * s2 * a, b)


def test_optimal_s2_is_the_mean_squared_error():
    """E_q ||x - f(z)||^2 / D over all of the batch; log p is a normal's there, and no other s2 gives it more."""
    likelihood = likelihoods.GaussianOptimal([1, 8, 8], rate=1.0)
    vae, batch = linear_vae(likelihood), digits()
    eps = randn(2, len(batch.x), 3)
    with torch.no_grad():
        rec = Elbo(2)(vae, batch, eps).rec
        q = vae.encoder(batch)
        mu = vae.decoder(q.mu + q.sigma * eps)
        s2 = ((mu - batch.x) ** 2).mean()
        torch.testing.assert_close(likelihood.s2, s2, rtol=1e-12, atol=0)
        torch.testing.assert_close(rec, Elbo(2)(vae.eval(), batch, eps).rec)  # where the average, of one batch, is s2
        assert rec.mean().item() == pytest.approx(-32 * (1 + math.log(2 * math.pi * s2)), rel=1e-12)
        for factor in (0.99, 1.01):
            likelihood.s2.copy_(s2 * factor)
            assert Elbo(2)(vae, batch, eps).rec.mean() < rec.mean()


def test_optimal_s2_is_in_float32_as_good():
    batch = digits()
    likelihood = likelihoods.GaussianOptimal([1, 8, 8], rate=1.0)
    eta = randn(*batch.x.shape).float()
    likelihood(eta).log_prob(batch.x.float())
    assert likelihood.s2.item() == pytest.approx(((eta.double() - batch.x) ** 2).mean().item(), rel=1e-6)


def test_envelope_theorem():
    """The gradient at a constant s2 is the profiled ELBO's, -D/2 log(2 pi e s2(theta)) - KL, through s2's formula."""
    vae, eps = linear_vae(likelihoods.GaussianOptimal([4], 0.1)), randn(5, 6, 3)
    batch, parameters = Batch(randn(6, 4, seed=1), torch.arange(6)), list(vae.parameters())
    terms = Elbo(5)(vae, batch, eps)
    q = vae.encoder(batch)
    s2 = ((vae.decoder(q.mu + q.sigma * eps) - batch.x) ** 2).mean()
    profiled = -2 * torch.log(2 * math.pi * math.e * s2) - terms.kl.mean()
    torch.testing.assert_close(terms.elbo.mean(), profiled)
    through = torch.autograd.grad(profiled, parameters, retain_graph=True)
    for a, b in zip(torch.autograd.grad(terms.elbo.mean(), parameters), through, strict=True):
        torch.testing.assert_close(a, b)


def test_the_average_begins_with_the_first_batch():
    """It is sum_t w_t s2_t / sum_t w_t, w_t = (1 - rate)^(n - t); batches of no data count for nothing."""
    likelihood, rate = likelihoods.GaussianOptimal([4], 0.3).double(), 0.3
    found = []
    for t in range(5):
        x = randn(6, 4, seed=t)
        likelihood(torch.zeros(0, 4, dtype=DOUBLE)).log_prob(torch.zeros(0, 4, dtype=DOUBLE))
        likelihood(torch.zeros(6, 4, dtype=DOUBLE)).log_prob(x)
        found.append((x**2).mean())
        w = (1 - rate) ** torch.arange(t, -1, -1, dtype=DOUBLE)
        torch.testing.assert_close(likelihood.s2, (w * torch.stack(found)).sum() / w.sum())
    before = likelihood.s2.clone()
    likelihood.eval()(torch.zeros(6, 4, dtype=DOUBLE)).log_prob(randn(6, 4))
    assert torch.equal(likelihood.s2, before)


def test_the_average_of_a_model_that_stands_still():
    likelihood, model = likelihoods.GaussianOptimal([50], 0.05), torch.Generator().manual_seed(0)
    s2, n = 0.07, 100 * 50
    for _ in range(200):
        noise = s2**0.5 * torch.randn(100, 50, generator=model)
        likelihood(torch.zeros(100, 50)).log_prob(noise)
    # Var s2_t = 2 s2^2 / n, of which the average keeps rate / (2 - rate)
    error = (2 / n * 0.05 / 1.95) ** 0.5
    assert 4 * error < 0.02
    assert likelihood.s2.item() == pytest.approx(s2, rel=4 * error)


def test_stacked_models_profile_each_its_own():
    models = [likelihoods.GaussianOptimal([4], 0.3).double() for _ in range(2)]
    parameters, buffers = stack_module_state(models)
    eta, x = randn(3, 2, 6, 4), randn(6, 4, seed=1)

    def log_p(buffers, eta):
        return functional_call(Scores(models[0]), {f"likelihood.{k}": v for k, v in buffers.items()}, (eta, x))

    for t in range(3):
        together = vmap(log_p)(buffers, eta[t])
        for i, model in enumerate(models):
            torch.testing.assert_close(together[i], model(eta[t, i]).log_prob(x))
            torch.testing.assert_close(buffers["s2"][i], model.s2)
    assert buffers["s2"][0] != buffers["s2"][1] and not parameters


class Scores(torch.nn.Module):
    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, eta, x):
        return self.likelihood(eta).log_prob(x)


def share_of(rank, folder):
    """What one of two processes finds in its share, of 5 data or of 1."""
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    likelihood = likelihoods.GaussianOptimal([4], 1.0).double()
    x = randn(6, 4).split([5, 1])[rank]
    log_p = likelihood(torch.zeros_like(x)).log_prob(x)
    torch.save((likelihood.s2, log_p), f"{folder}/{rank}")
    distributed.destroy_process_group()


def test_processes_share_one_s2(tmp_path):
    processes = [get_context("fork").Process(target=share_of, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    alone = likelihoods.GaussianOptimal([4], 1.0).double()
    log_p = alone(torch.zeros(6, 4, dtype=DOUBLE)).log_prob(randn(6, 4))
    (s2, first), (same, second) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    torch.testing.assert_close(s2, alone.s2)
    assert torch.equal(s2, same)
    torch.testing.assert_close(torch.cat([first, second]), log_p)


# Levels


def test_levels_are_found():
    for levels in [*range(2, 300), 65536]:
        k = torch.arange(levels, dtype=torch.float32)
        for x in (k / (levels - 1), k * (1 / (levels - 1)), k.double() / (levels - 1)):
            assert Levels(levels).check(x).all()
    off = torch.tensor([-1 / 16, 17 / 16, 0.5 / 16, 3.001 / 16, math.nan, INF])
    assert not Levels(17).check(off).any()
    assert [repr(Levels(n)) for n in (2, 3, 17)] == ["{0, 1}", "{0, 1/2, 1}", "{0, 1/16, ..., 1}"]
    assert count_levels([grid(17)[::4], grid(17)]) == 17 and count_levels([grid(17)[::4]]) == 5
    assert count_levels([grid(256, SINGLE)]) == 256
    assert count_levels([grid(17), torch.rand(100)]) is None


def test_grids():
    """A mass has one, a density none; grey data have a Bernoulli's log p, but no probability."""
    assert likelihoods.Gaussian([1], 0.1).grid is likelihoods.ContinuousBernoulli([1]).grid is None
    bernoulli = likelihoods.Bernoulli([1])
    assert bernoulli.grid.check(torch.tensor([0.0, 1.0])).all() and not bernoulli.grid.check(torch.tensor(0.5))
    assert bernoulli.support.check(torch.tensor(0.5))


@pytest.mark.parametrize("shape", [[6], [4, 5]], ids=str)
def test_flat_data_have_no_channels(shape):
    with pytest.raises(ValueError, match=r"^per_channel must be false .*got data \["):
        likelihoods.GaussianLearned(shape, 0.1, True)


# Training


def test_a_linear_vae_finds_the_best_s2():
    """That of probabilistic PCA: the mean of the discarded eigenvalues, though s2 begins at the data's mean square."""
    batch, d, vae = digits(), 3, linear_vae(likelihoods.GaussianOptimal([1, 8, 8], 0.05))
    ppca, noise, n = PPCA.of(batch.x), torch.Generator().manual_seed(0), len(batch.x)
    optimizer = torch.optim.Adam(vae.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        i = torch.randint(n, (200,), generator=noise)
        eps = torch.randn(1, 200, d, generator=noise, dtype=DOUBLE)
        optimizer.zero_grad()
        Elbo(1)(vae, Batch(batch.x[i], i), eps).loss.mean().backward()
        optimizer.step()
        schedule.step()
    vae.eval()
    with torch.no_grad():
        eps = torch.randn(20, 1, n, d, generator=noise, dtype=DOUBLE)
        elbo = torch.stack([Elbo(1)(vae, batch, e).elbo.mean() for e in eps])
        q = vae.encoder(batch)
        sse = ((vae.decoder(q.mu + q.sigma * eps[0, 0]) - batch.x) ** 2).flatten(1).sum(1)
    s2 = ppca.best_s2(d)
    # of the mean of 200 data's errors, of which the average keeps rate / (2 - rate) of the variance
    error = sse.std() / sse.mean() * (0.05 / 1.95 / 200) ** 0.5
    assert vae.likelihood.s2.item() == pytest.approx(s2, rel=4 * error.item())
    assert elbo.mean().item() == pytest.approx(ppca.log_p(d, s2), abs=4 * elbo.std().item() / len(elbo) ** 0.5)
