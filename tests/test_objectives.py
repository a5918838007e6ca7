"""What is maximised, and the gradients that are taken for it: means and exact cases."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vae_lab import decoders, encoders, likelihoods, priors
from vae_lab.distributions import DiagonalNormal, StandardNormal, detached, kl_per_dimension
from vae_lab.interfaces import Batch, Prior
from vae_lab.objectives import Elbo, Iwae, NoteEq20
from vae_lab.oracles import PPCA
from vae_lab.vae import VAE


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_vae(s2=0.1, likelihood=None, shape=(4,), d=2):
    torch.manual_seed(0)
    parts = encoders.MLP(shape, d, [5], "tanh"), decoders.MLP(shape, d, [5], "tanh")
    return VAE(*parts, likelihood or likelihoods.Gaussian(shape, s2), priors.StandardNormal(d)).double()


@pytest.fixture(scope="module")
def exact():
    """A linear VAE at its optimum, where q is the exact posterior, and its data."""
    x, d, s2 = randn(50, 6) @ randn(6, 6, seed=1), 3, 0.5
    ppca = PPCA.of(x)
    vae = VAE(
        encoders.Linear([6], d), decoders.Linear([6], d), likelihoods.Gaussian([6], s2), priors.StandardNormal(d)
    ).double()
    (W, b), (A, a, sigma) = ppca.decoder(d, s2), ppca.encoder(d, s2)
    with torch.no_grad():
        for parameter, value in [
            (vae.decoder.f.weight, W),
            (vae.decoder.f.bias, b),
            (vae.encoder.mu.weight, A),
            (vae.encoder.mu.bias, a),
            (vae.encoder.log_sigma, sigma.log()),
        ]:
            parameter.copy_(value)
    return vae, Batch(x, torch.arange(len(x))), ppca.log_prob(x, d, s2)


BATCH = Batch(randn(6, 4, seed=1), torch.arange(6))


def gradient(objective, vae, eps, part="encoder", batch=BATCH):
    """The gradient of the mean loss with respect to a part's parameters, as one vector."""
    parameters = list(getattr(vae, part).parameters())
    loss = objective(vae, batch, eps).loss.mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def gradients(objective, vae, n, part="encoder", seed=0):
    """n independent gradients: [n, parameters]."""
    eps = randn(n, objective.samples, 6, 2, seed=seed)
    return torch.stack([gradient(objective, vae, e, part) for e in eps])


def agree(a, b, sigmas=5.0):
    """Whether two samples of vectors have the same mean, in standard errors of each component."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return ((a.mean(0) - b.mean(0)).abs() <= sigmas * error + 1e-12).all()


# The KL by samples


def test_kl_by_samples_has_the_mean_of_the_closed_form():
    vae, V = make_vae(), 4000
    sampled, exact = Elbo(V, kl="monte_carlo")(vae, BATCH, randn(V, 6, 2)), Elbo(V)(vae, BATCH, randn(V, 6, 2))
    assert torch.equal(sampled.rec, exact.rec)
    one_by_one = torch.stack([Elbo(1, kl="monte_carlo")(vae, BATCH, e[None]).kl for e in randn(V, 6, 2)])
    torch.testing.assert_close(sampled.kl, one_by_one.mean(0))
    assert ((sampled.kl - exact.kl).abs() < 4 * one_by_one.std(0) / V**0.5).all()
    torch.testing.assert_close(sampled.elbo, sampled.rec - sampled.kl)


def test_samples_stand_in_where_no_closed_form_is_known():
    class Other(Prior):
        d = 2

        def forward(self, encoder):
            zero = torch.zeros(2, dtype=torch.float64)
            return Independent(Normal(zero, zero + 1), 1)

    vae, eps = make_vae(), randn(3, 6, 2)
    other = VAE(vae.encoder, vae.decoder, vae.likelihood, Other())
    for found, expected in zip(Elbo(3)(other, BATCH, eps), Elbo(3, kl="monte_carlo")(vae, BATCH, eps), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(NotImplementedError, match="KL"):
        Elbo(3, gradient="score")(other, BATCH, eps)


# Weights of the KL


def test_weights_change_the_loss_alone():
    vae, eps = make_vae(), randn(3, 6, 2)
    true = Elbo(3)(vae, BATCH, eps)
    assert torch.equal(true.loss, -true.elbo)
    for objective, loss in [
        (Elbo(3, beta=0.3), 0.3 * true.kl - true.rec),
        (Elbo(3, beta=0.0), -true.rec),
        (Elbo(3, warmup=4), 0.25 * true.kl - true.rec),
    ]:
        found = objective(vae, BATCH, eps)
        assert all(torch.equal(getattr(found, name), getattr(true, name)) for name in ("elbo", "rec", "kl"))
        torch.testing.assert_close(found.loss, loss)


def test_warmup_counts_training_steps():
    vae, eps, objective = make_vae(), randn(1, 6, 2), Elbo(1, beta=2.0, warmup=4)

    def weight(o):
        terms = o(vae, BATCH, eps)
        return ((terms.loss + terms.rec) / terms.kl).mean().item()

    assert [weight(objective) for _ in range(3)] == pytest.approx([0.5, 1.0, 1.5])
    assert [weight(objective.eval()) for _ in range(2)] == pytest.approx([1.5, 1.5])  # evaluation does not count
    resumed = Elbo(1, beta=2.0, warmup=4)
    resumed.load_state_dict(objective.state_dict())
    assert [weight(resumed.train()) for _ in range(3)] == pytest.approx([2.0, 2.0, 2.0])


def test_free_bits_by_hand():
    vae, eps, free = make_vae(), randn(1, 6, 2), 0.1
    q = vae.encoder(BATCH)
    kl = kl_per_dimension(q, vae.p_z())
    assert (kl < free).any() and (kl > free).any()
    terms = Elbo(1, free_bits=free)(vae, BATCH, eps)
    torch.testing.assert_close(terms.loss, torch.where(kl > free, kl, free).sum(1) - terms.rec)
    torch.testing.assert_close(terms.kl, kl.sum(1))


# Gradients of the ELBO


def test_stl_has_the_mean_of_the_plain_gradient():
    vae = make_vae()
    plain, stl = (gradients(Elbo(2, kl="monte_carlo", gradient=g), vae, 2000, seed=i) for i, g in enumerate(G[:2]))
    assert agree(plain, stl)
    assert not agree(plain, 1.2 * stl)  # the test can tell


G = ["plain", "stl", "dreg"]


def test_stl_vanishes_at_the_exact_posterior(exact):
    vae, batch, _ = exact
    eps = randn(1, 50, 3)
    stl = gradient(Elbo(1, kl="monte_carlo", gradient="stl"), vae, eps, batch=batch)
    plain = gradient(Elbo(1, kl="monte_carlo"), vae, eps, batch=batch)
    assert stl.abs().max() < 1e-12 < 1e-3 < plain.abs().max()


def test_score_function_has_the_mean_of_the_reparameterised_gradient():
    vae, n = make_vae(s2=1.0), 3000
    reparameterised, score = gradients(Elbo(2), vae, n), gradients(Elbo(2, gradient="score"), vae, n, seed=1)
    assert agree(reparameterised, score)
    assert score.var(0).sum() > 4 * reparameterised.var(0).sum()
    eps = randn(2, 6, 2)  # z is no function of Theta
    torch.testing.assert_close(*(gradient(o, vae, eps, "decoder") for o in (Elbo(2), Elbo(2, gradient="score"))))


def test_detached_z_leaves_the_encoder_the_kl_alone():
    vae, eps = make_vae(), randn(2, 6, 2)
    kl = kl_divergence(vae.encoder(BATCH), vae.p_z()).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(kl, list(vae.encoder.parameters()))])
    torch.testing.assert_close(gradient(Elbo(2, gradient="detached"), vae, eps), expected)
    assert not agree(gradients(Elbo(2), vae, 500), expected.expand(2, -1))  # the wrong mean


@pytest.mark.parametrize("gradient", ["score", "detached"])
def test_values_do_not_depend_on_the_gradient(gradient):
    vae, eps = make_vae(), randn(2, 6, 2)
    for a, b in zip(Elbo(2)(vae, BATCH, eps), Elbo(2, gradient=gradient)(vae, BATCH, eps), strict=True):
        torch.testing.assert_close(a, b)


# Importance weights


@pytest.mark.parametrize("gradient", G)
def test_iwae_by_hand(gradient):
    vae, eps, K = make_vae(), randn(5, 6, 2), 5
    q, p = vae.encoder(BATCH), vae.p_z()
    z = q.mu + q.sigma * eps
    log_w = vae.p_x(z).log_prob(BATCH.x) + p.log_prob(z) - q.log_prob(z)
    terms, elbo = Iwae(K, gradient)(vae, BATCH, eps), Elbo(K)(vae, BATCH, eps)
    torch.testing.assert_close(terms.loss, -(log_w.exp().mean(0)).log())
    for name in ("elbo", "rec", "kl"):
        torch.testing.assert_close(getattr(terms, name), getattr(elbo, name))


@pytest.mark.parametrize("K", [1, 3, 20])
def test_iwae_is_the_elbo_at_the_exact_posterior(exact, K):
    vae, batch, log_p = exact
    terms = Iwae(K)(vae, batch, randn(K, 50, 3))
    torch.testing.assert_close(-terms.loss, log_p)
    torch.testing.assert_close(Elbo(1, kl="monte_carlo")(vae, batch, randn(1, 50, 3)).elbo, log_p)


def test_more_samples_tighten_the_bound():
    vae, n = make_vae(), 2000
    means, errors = [], []
    for K in (1, 2, 8, 32):
        bounds = -torch.stack([Iwae(K)(vae, BATCH, e).loss.mean() for e in randn(n // K, K, 6, 2, seed=K)])
        means.append(bounds.mean().item())
        errors.append((bounds.std() / len(bounds) ** 0.5).item())
    for i in range(3):
        assert means[i + 1] - means[i] > 4 * math.hypot(errors[i], errors[i + 1])


def test_dreg_by_hand():
    """The encoder's gradient is sum_k w_k^2 (d log w_k / d z_k) (d z_k / d phi), q's own parameters held still."""
    vae, eps = make_vae(), randn(4, 6, 2)
    q, p = vae.encoder(BATCH), vae.p_z()
    z = q.mu + q.sigma * eps
    free = z.detach().requires_grad_()
    log_w = vae.p_x(free).log_prob(BATCH.x) + p.log_prob(free) - detached(q).log_prob(free)
    w = log_w.softmax(0).detach()
    [pull] = torch.autograd.grad((w**2 * log_w).sum(), free)
    by_hand = torch.autograd.grad(z, list(vae.encoder.parameters()), grad_outputs=-pull / 6)
    torch.testing.assert_close(gradient(Iwae(4, "dreg"), vae, eps), torch.cat([g.flatten() for g in by_hand]))


def test_dreg_has_the_mean_of_the_plain_gradient_and_a_smaller_variance():
    vae, n = make_vae(), 3000
    plain, dreg = (gradients(Iwae(8, g), vae, n, seed=i) for i, g in enumerate(("plain", "dreg")))
    assert agree(plain, dreg)
    assert dreg.var(0).sum() < plain.var(0).sum()
    eps = randn(8, 6, 2)
    torch.testing.assert_close(*(gradient(Iwae(8, g), vae, eps, "decoder") for g in ("plain", "dreg")))


@pytest.mark.parametrize("gradient_", G)
def test_one_importance_sample_is_the_elbo(gradient_):
    vae, eps = make_vae(), randn(1, 6, 2)
    elbo = Elbo(1, kl="monte_carlo", gradient="stl" if gradient_ == "dreg" else gradient_)
    torch.testing.assert_close(gradient(Iwae(1, gradient_), vae, eps), gradient(elbo, vae, eps))


@pytest.mark.parametrize("gradient_", G)
def test_iwae_gradients_stack(gradient_):
    """`torch.func.grad` and `vmap` give what autograd gives."""
    vae, eps = make_vae(), randn(3, 4, 6, 2)
    parameters = dict(vae.named_parameters())

    def loss(parameters, eps):
        return torch.func.functional_call(Scored(vae, Iwae(4, gradient_)), parameters, (eps,))

    named = {f"vae.{k}": v.detach() for k, v in parameters.items()}
    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(named, eps)
    for i, e in enumerate(eps):
        alone = torch.autograd.grad(Iwae(4, gradient_)(vae, BATCH, e).loss.mean(), list(parameters.values()))
        for key, value in zip(named, alone, strict=True):
            torch.testing.assert_close(together[key][i], value)


class Scored(torch.nn.Module):
    """A model with its objective, as a function of the noise."""

    def __init__(self, vae, objective):
        super().__init__()
        self.vae, self.objective = vae, objective

    def forward(self, eps):
        return self.objective(self.vae, BATCH, eps).loss.mean()


# (20) as printed


def test_eq20_is_the_elbo_at_one_half():
    eps = randn(3, 6, 2)
    for part in ("encoder", "decoder"):
        torch.testing.assert_close(*(gradient(o, make_vae(s2=0.5), eps, part) for o in (Elbo(3), NoteEq20(3))))


def test_eq20_knows_no_s2():
    eps, found = randn(3, 6, 2), []
    for s2 in (0.01, 0.1, 1.0):
        vae = make_vae(s2)
        terms = NoteEq20(3)(vae, BATCH, eps)
        assert torch.equal(terms.elbo, Elbo(3)(vae, BATCH, eps).elbo)  # what is reported is true
        found.append(torch.cat([gradient(NoteEq20(3), vae, eps, part) for part in ("encoder", "decoder")]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    exact = torch.cat([gradient(Elbo(3), make_vae(0.1), eps, part) for part in ("encoder", "decoder")])
    assert torch.cosine_similarity(found[1], exact, 0) < 1 - 1e-6


def test_eq20_needs_a_gaussian():
    with pytest.raises(ValueError, match=r"^likelihood must be gaussian"):
        NoteEq20(1)(make_vae(likelihood=likelihoods.Bernoulli([4])), BATCH, randn(1, 6, 2))


# What excludes each other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient": "dreg"}, "gradient must not be dreg for the ELBO"),
        ({"gradient": "stl"}, "gradient must not be stl where kl is analytic"),
        ({"gradient": "score", "kl": "monte_carlo"}, "gradient must not be score where kl is monte_carlo"),
        ({"gradient": "detached", "kl": "monte_carlo"}, "gradient must not be detached where kl is monte_carlo"),
        ({"free_bits": 0.1, "kl": "monte_carlo"}, "free_bits must be 0 where kl is monte_carlo"),
        ({"gradient": "slt"}, r"gradient must be one of plain, stl, .*did you mean 'stl'\?"),
        ({"kl": "exact"}, "kl must be one of analytic, monte_carlo"),
        ({"beta": -1.0}, "beta must be a finite number >= 0"),
        ({"warmup": -1}, "warmup must be a whole number >= 0"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Elbo(1, **arguments)


def test_a_score_that_cannot_be_left_out_is_refused():
    with pytest.raises(ValueError, match=r"^gradient must be plain for a posterior of type StandardNormal"):
        detached(StandardNormal(2, torch.zeros(())))
    assert isinstance(detached(DiagonalNormal(torch.zeros(2), torch.ones(2))), DiagonalNormal)


def test_free_bits_need_a_kl_of_each_dimension():
    class Standard(Prior):
        d = 2

        def forward(self, encoder):
            return MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())

    vae = make_vae()
    other = VAE(vae.encoder, vae.decoder, vae.likelihood, Standard())
    with pytest.raises(ValueError, match=r"^free_bits must be 0 where q and p have no KL"):
        Elbo(1, free_bits=0.1)(other, BATCH, randn(1, 6, 2))


def test_a_profiled_s2_is_no_iwae_bounds():
    vae = make_vae(likelihood=likelihoods.GaussianOptimal([4], 0.1))
    with pytest.raises(ValueError, match=r"^likelihood must not be gaussian_optimal"):
        Iwae(2)(vae, BATCH, randn(2, 6, 2))
    Iwae(2)(vae.eval(), BATCH, randn(2, 6, 2))  # frozen, it is a number like any other
