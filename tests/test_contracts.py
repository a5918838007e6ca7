"""What every part promises, whichever it is: a new class in a module is tested here as it stands."""

import inspect
import io
import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributions import constraints
from torch.func import functional_call, stack_module_state, vmap

from vae_lab import decoders, encoders, hints, interfaces, likelihoods, objectives, posteriors, priors, schedules
from vae_lab.data import preprocessing, sampling, sources
from vae_lab.distributions import centre, reparameterise
from vae_lab.engine import engines, rules, step
from vae_lab.interfaces import Batch, Decoder, Encoder, Likelihood, Posterior, Prior
from vae_lab.objectives import Elbo, Objective
from vae_lab.vae import VAE


def classes(module, kind):
    """The concrete parts of a module."""
    found = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return [c for c in found if issubclass(c, kind) and not inspect.isabstract(c)]


GROUPS = {
    "encoder": (ENCODERS := classes(encoders, Encoder)),
    "posterior": (POSTERIORS := classes(posteriors, Posterior)),
    "decoder": (DECODERS := classes(decoders, Decoder)),
    "likelihood": (LIKELIHOODS := classes(likelihoods, Likelihood)),
    "prior": (PRIORS := classes(priors, Prior)),
    "objective": classes(objectives, Objective),
}
GROUP = {cls: group for group, found in GROUPS.items() for cls in found}

IMAGES, VECTOR, D, LEVELS = [(1, 8, 8), (3, 5, 7), (1, 28, 20)], (6,), 3, 5


def arguments(cls, shape=(1, 8, 8), d=D):
    """What the class's own YAML file gives its constructor, for data of this shape."""
    for option in hints.groups("train")[GROUP[cls]]:
        node = hints.read(f"{GROUP[cls]}/{option}")
        if node["_target_"] == f"{cls.__module__}.{cls.__name__}":
            known = {"${data.shape}": list(shape), "${d}": d, "${classes}": 0, "${posterior}": None}
            given = {k: known.get(str(v), v) for k, v in node.items() if not k.startswith("_")}
            few = {"outputs": 1, "levels": LEVELS, "n": 4}
            return given | {k: v for k, v in few.items() if k in given}
    raise AssertionError(f"{cls.__name__} has no YAML file in conf/{GROUP[cls]}")


def build(cls, shape=(1, 8, 8), d=D):
    return cls(**arguments(cls, shape, d))


def name(value):
    return f"{value.__module__.rpartition('.')[2]}.{value.__name__}" if inspect.isclass(value) else str(value)


def each_shape(*groups):
    """Every choice of one class from each group, with every shape that they take."""
    return [
        pytest.param(*chosen, shape, id="-".join([*map(name, chosen), "x".join(map(str, shape))]))
        for chosen in product(*groups)
        for shape in (IMAGES if any(c.__name__ == "Conv" for c in chosen) else [*IMAGES, VECTOR])
    ]


def make_vae(encoder, decoder, likelihood, shape, seed=0):
    torch.manual_seed(seed)
    p = build(likelihood, shape)
    f = decoder(**arguments(decoder, shape) | {"outputs": p.outputs})
    return VAE(build(encoder, shape), f, p, build(PRIORS[0])).double()


def make_batch(shape, n=4):
    """Data that lie in every likelihood's support."""
    pixels = torch.randint(LEVELS, (n, *shape), generator=torch.Generator().manual_seed(n))
    return Batch(pixels.double() / (LEVELS - 1), torch.arange(n))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Scored(nn.Module):
    """A model with its objective, as a function of the noise."""

    def __init__(self, vae, batch, V):
        super().__init__()
        self.vae, self.objective, self.batch = vae, Elbo(V), batch

    def forward(self, eps):
        return self.objective(self.vae, self.batch, eps)


# Shapes


@pytest.mark.parametrize(("encoder", "shape"), each_shape(ENCODERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_encoder_gives_one_distribution_a_datum(encoder, shape, dtype, n):
    batch = make_batch(shape, n)
    q = build(encoder, shape).to(dtype)(batch._replace(x=batch.x.to(dtype)))
    assert q.batch_shape == (n,) and q.event_shape == (D,)
    assert q.mean.dtype == q.variance.dtype == dtype and (q.variance > 0).all()


@pytest.mark.parametrize(("decoder", "shape"), each_shape(DECODERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoder_keeps_the_leading_dimensions(decoder, shape, dtype):
    f, z = build(decoder, shape).to(dtype), noise(2, 4, D).to(dtype)
    for lead in [(), (1,), (0,), (4,), (2, 4), (2, 0), (2, 2, 2)]:
        part = z.reshape(-1, D)[: math.prod(lead)].reshape(*lead, D)
        eta = f(part)
        assert eta.shape == (*lead, *shape) and eta.dtype == dtype
    torch.testing.assert_close(f(z)[1, 3], f(z[1, 3]))  # each z is mapped by itself


@pytest.mark.parametrize(("likelihood", "shape"), each_shape(LIKELIHOODS))
@pytest.mark.parametrize("lead", [(1,), (4,), (2, 4), (2, 0)])
def test_likelihood_sums_over_a_datum(likelihood, shape, lead):
    part = build(likelihood, shape).double()
    p = part(noise(*lead, *decoders.eta_shape(shape, part.outputs)))
    assert p.batch_shape == lead and p.event_shape == shape
    assert p.log_prob(make_batch(shape, lead[-1]).x).shape == lead
    assert p.mean.shape == p.variance.shape == (*lead, *shape) and (p.variance > 0).all()
    between = part.support if part.grid is None else constraints.unit_interval
    assert between.check(p.mean).all()


@pytest.mark.parametrize("prior", PRIORS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prior_is_over_d(prior, dtype):
    p = build(prior).to(dtype)(build(ENCODERS[0]).to(dtype))
    assert p.batch_shape == () and p.event_shape == (D,) and p.mean.dtype == dtype
    assert p.log_prob(noise(2, 4, D).to(dtype)).shape == (2, 4)


@pytest.mark.parametrize("posterior", POSTERIORS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (0,), (4,), (2, 4)])
def test_posterior_takes_its_numbers(posterior, dtype, lead):
    part = build(posterior).to(dtype)
    h = noise(2, 4, part.size).to(dtype).reshape(-1, part.size)[: math.prod(lead)].reshape(*lead, part.size)
    q = part(h)
    assert q.batch_shape == lead and q.event_shape == (part.d,) == (D,)
    z = reparameterise(q, noise(5, *lead, D).to(dtype))
    assert z.shape == (5, *lead, D) and z.dtype == dtype
    log_q = q.log_prob(z)
    assert log_q.shape == (5, *lead) and log_q.dtype == dtype and log_q.isfinite().all()
    assert centre(q).shape == (*lead, D) and centre(q).dtype == dtype


class Drawn(nn.Module):
    """Samples of a posterior or a prior, and their log densities, as a function of the noise."""

    def __init__(self, part, given):
        super().__init__()
        self.part, self.given = part, given

    def forward(self, eps):
        p = self.part(self.given)
        return (z := reparameterise(p, eps)), p.log_prob(z)


@pytest.mark.parametrize("cls", [*POSTERIORS, *PRIORS], ids=name)
def test_posteriors_and_priors_stack(cls):
    """Under `vmap` over their parameters and noise, they do what each does alone: values and gradients."""
    eps, models = noise(2, 5, 4, D), []
    for seed in range(2):
        torch.manual_seed(seed)
        part = build(cls).double()
        models.append(Drawn(part, noise(4, part.size) if cls in POSTERIORS else build(ENCODERS[0]).double()))
    parameters, buffers = stack_module_state(models)
    together = vmap(lambda p, b, e: functional_call(models[0], (p, b), (e,)))(parameters, buffers, eps)
    alone = [model(e) for model, e in zip(models, eps, strict=True)]
    for a, *b in zip(together, *alone, strict=True):
        torch.testing.assert_close(a, torch.stack(b))
    used = [k for k, v in parameters.items() if together[1].requires_grad and k.startswith("part.")]
    if used:
        gradients = torch.autograd.grad(together[1].sum(), [parameters[k] for k in used])
        sum(log_p.sum() for _, log_p in alone).backward()
        for key, gradient in zip(used, gradients, strict=True):
            each = [dict(model.named_parameters())[key].grad for model in models]
            torch.testing.assert_close(gradient, torch.stack(each))


# The whole

# every likelihood with every decoder, whose numbers it takes; it sees nothing of the encoder
MODELS = each_shape(ENCODERS, DECODERS, LIKELIHOODS[:1]) + each_shape(ENCODERS[:1], DECODERS, LIKELIHOODS[1:])


@pytest.mark.parametrize(("encoder", "decoder", "likelihood", "shape"), MODELS)
def test_model(encoder, decoder, likelihood, shape):
    """Terms of one datum or more; finite gradients of every parameter; the same after saving and loading."""
    vae, V = make_vae(encoder, decoder, likelihood, shape), 2
    for n in (1, 4):
        terms = Scored(vae, make_batch(shape, n), V)(noise(V, n, D))
        assert all(term.shape == (n,) and term.isfinite().all() for term in terms)

    terms.loss.sum().backward()
    for parameter, value in vae.named_parameters():
        assert value.grad is not None, parameter
        gradient = value.grad.to_dense()  # that of phi_i is sparse
        assert gradient.isfinite().all() and gradient.any(), parameter

    file = io.BytesIO()
    torch.save(vae.state_dict(), file)
    file.seek(0)
    loaded = make_vae(encoder, decoder, likelihood, shape, seed=1)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    again = Scored(loaded, make_batch(shape), V)(noise(V, 4, D))
    assert all(torch.equal(a, b) for a, b in zip(again, terms, strict=True))


@pytest.mark.parametrize(("encoder", "decoder", "likelihood", "shape"), MODELS)
def test_models_stack(encoder, decoder, likelihood, shape):
    """Under `vmap` over their parameters and noise, models do what each does alone: values and gradients."""
    V, batch = 2, make_batch(shape)
    models = [Scored(make_vae(encoder, decoder, likelihood, shape, seed), batch, V) for seed in range(2)]
    eps = noise(len(models), V, 4, D)
    parameters, buffers = stack_module_state(models)

    def terms(parameters, buffers, eps):
        return functional_call(models[0], (parameters, buffers), (eps,))

    together = vmap(terms)(parameters, buffers, eps)
    if models[0].vae.encoder.amortised:  # sparse gradients cannot be stacked
        together.loss.sum().backward()
    for i, model in enumerate(models):
        alone = model(eps[i])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b)
        if model.vae.encoder.amortised:
            alone.loss.sum().backward()
            for key, value in model.named_parameters():
                torch.testing.assert_close(parameters[key].grad[i], value.grad)


def test_parts_must_fit():
    encoder, decoder = build(ENCODERS[0]), build(DECODERS[0])
    likelihood, prior = build(LIKELIHOODS[0]), build(PRIORS[0])
    with pytest.raises(ValueError, match=r"^d must be the same .*got 3, 3, 2"):
        VAE(encoder, decoder, likelihood, build(PRIORS[0], d=2))
    with pytest.raises(ValueError, match=r"^shape must be the same .*got \[1, 8, 8\], \[64\], \[1, 8, 8\]"):
        VAE(encoder, decoders.Linear([64], D), likelihood, prior)
    vae = VAE(encoder, decoder, likelihood, prior)
    assert vae.d == D and vae.shape == (1, 8, 8)
    assert vae.sample(torch.zeros(5, D)).shape == (5, 1, 8, 8)


# Arguments

WRONG = {
    "d": [0, -1, 1.5, "abc", True, None],
    "outputs": [0, -1, 1.5, "abc", True],
    "classes": [-1, 1.5, "abc", True, None],
    "posterior": [],
    "n": [0, -1, 1.5, "abc", True, None],
    "lr": [0, -1, math.nan, math.inf, "abc", None],
    "steps": [0, -1, 1.5, "abc", True, None],
    "V": [0, -3, 2.0, "abc", True, None],
    "K": [0, -3, 2.0, "abc", True, None],
    "kl": ["exact", None],
    "beta": [-1, math.nan, "abc", None],
    "warmup": [-1, 1.5, "abc", True, None],
    "free_bits": [-1, math.inf, "abc", None],
    "gradient": ["slt", None],
    "s2": [0, -1, math.nan, math.inf, "abc", None],
    "floor": [0, -1, math.nan, "abc", None],
    "scale": [0, -1, math.inf, "abc", None],
    "rate": [0, -1, 1.5, math.nan, "abc", None],
    "per_channel": ["abc", 1, None],
    "levels": [1, -1, 2.5, "abc", True, None],
    "shape": ["abc", [0], [1, 2.5, 3], None],
    "hidden": ["x", [0], [5, "x"], 500, None],
    "channels": ["x", [0], [5, "x"], 32, None],
    "components": [0, -1, 1.5, "abc", True, None],
    "transforms": [0, -1, 1.5, "abc", True, None],
    "activation": ["tahn", "", None],
}


@pytest.mark.parametrize(
    ("cls", "argument", "value"),
    [
        pytest.param(cls, argument, value, id=f"{name(cls)}-{argument}={value}")
        for cls in GROUP
        for argument in arguments(cls)
        for value in WRONG[argument]
    ],
)
def test_wrong_arguments(unchecked, cls, argument, value):
    with pytest.raises(ValueError) as refused:
        cls(**arguments(cls) | {argument: value})
    message = str(refused.value)
    assert message.startswith(f"{argument} must be ") and repr(value) in message and "\n" not in message


def test_wrong_activation_is_told_the_right_one():
    with pytest.raises(ValueError, match=r"^activation must be one of tanh, .*got 'tahn'; did you mean 'tanh'\?"):
        encoders.MLP([6], D, [5], "tahn")


@pytest.mark.parametrize("cls", [encoders.Conv, decoders.Conv], ids=name)
@pytest.mark.parametrize("shape", [[64], [8, 8], [1, 1, 8, 8]], ids=str)
def test_conv_takes_images(cls, shape):
    with pytest.raises(ValueError, match=r"^shape must be \[C, H, W\] for (en|de)coder Conv") as refused:
        build(cls, shape)
    assert str(shape) in str(refused.value)


# Classes


ABSTRACT = [
    (Encoder, encoders),
    (Posterior, posteriors),
    (Decoder, decoders),
    (Likelihood, likelihoods),
    (Prior, priors),
    (Objective, objectives),
    (sources.Source, sources),
    (preprocessing.Preprocessing, preprocessing),
    (sampling.Sampling, sampling),
    (engines.Engine, engines),
    (rules.Rule, rules),
]


@pytest.mark.parametrize(("kind", "module"), ABSTRACT, ids=name)
def test_classes_are_abstract_or_final(kind, module):
    """A concrete class is final, has one abstract parent, and overrides nothing that its parent implements."""
    assert inspect.isabstract(kind)
    found = classes(module, kind)
    assert found
    implemented = {k for k, v in vars(kind).items() if callable(v) and k not in kind.__abstractmethods__}
    for cls in found:
        assert getattr(cls, "__final__", False), f"{cls.__name__} is not final"
        assert cls.__bases__ == (kind,)
        assert not {k for k in vars(cls) if not k.startswith("__")} & implemented


@pytest.mark.parametrize(
    "module",
    [interfaces, posteriors, encoders, decoders, likelihoods, priors, objectives, schedules, engines, rules, step],
    ids=name,
)
def test_every_class_is_abstract_final_or_a_tuple(module):
    for cls in vars(module).values():
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
            assert inspect.isabstract(cls) or getattr(cls, "__final__", False) or issubclass(cls, tuple)
