"""The engines: whichever makes the steps, a run comes to the same, and goes on from where another left it."""

import copy
import itertools
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import test_lit
import test_resume
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import binary_cross_entropy_with_logits

from vae_lab import decoders, encoders, likelihoods, posteriors, priors, schedules
from vae_lab.engine import engines
from vae_lab.engine.elementary import QUICK, cross_entropy, quickened, sigmoid, tanh
from vae_lab.engine.engines import Auto, Compiled, Eager, Replay, bare
from vae_lab.engine.step import Scored, Step, Stepped, Work
from vae_lab.interfaces import Batch, Block
from vae_lab.objectives import Elbo, Iwae, NoteEq20
from vae_lab.vae import VAE

S, D, B, LEVELS = (1, 8, 8), 3, 10, 5


def interpreted(graph, given):
    """In place of a compiler: the graph's operations one by one, so that a test of what they are costs no compiling."""
    return graph


def make(likelihood=None, encoder=None, decoder=None, prior=None, dtype=torch.float32, seed=0, d=D):
    torch.manual_seed(seed)
    likelihood = (likelihood or partial(likelihoods.Gaussian, s2=0.1))(S)
    encoder = (encoder or partial(encoders.MLP, hidden=[20], activation="tanh"))(S, d)
    decoder = (decoder or partial(decoders.MLP, hidden=[20], activation="tanh"))(S, d, outputs=likelihood.outputs)
    return VAE(encoder, decoder, likelihood, (prior or priors.StandardNormal)(d)).to(dtype)


def batches(steps, size=B, labels=False, dtype=torch.float32):
    """Data that lie in every likelihood's support."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randint(LEVELS, (size, *S), generator=draw).to(dtype) / (LEVELS - 1)
        yield Batch(x, torch.arange(size), torch.randint(4, (size,), generator=draw) if labels else None)


def adam(parameters):
    return torch.optim.Adam(parameters, 3e-3, fused=True)


def train(
    engine,
    vae,
    objective,
    optimizer=adam,
    steps=20,
    clip=None,
    labels=False,
    schedule=None,
    told=print,
    seed=2,
    between=lambda done, vae, objective: None,
    data=None,
):
    """Trains a copy; the terms of each step, the gradients' norms, and the copy with its optimiser.

    `between` is called before each block, with the number of steps that are done. The batches are drawn from `data`, if
    there are some.
    """
    vae, objective = copy.deepcopy(vae), copy.deepcopy(objective)
    vae.train()
    optimizer = optimizer(list(vae.parameters()))
    schedule = schedule and schedule(optimizer, steps)
    dtype = next(vae.parameters()).dtype

    def eager(batch, eps, norm):
        terms = objective(vae, batch, eps)
        optimizer.zero_grad()
        terms.loss.mean().backward()
        total = torch.nn.utils.get_total_norm([p.grad for p in vae.parameters() if p.grad is not None])
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(vae.parameters(), clip)
        optimizer.step()
        return Stepped(torch.stack([v.detach() for v in terms]), total)

    [example] = batches(1, labels=labels, dtype=dtype)
    make_steps = engine.start(Work(vae, objective, optimizer, clip, example, steps, 0, None, told), eager)
    if isinstance(engine, Compiled):
        assert isinstance(make_steps, engines.CompiledSteps)
    noise, terms, norms = torch.Generator().manual_seed(seed), [], []
    if data is None:
        left = Block(joined(batches(steps, labels=labels, dtype=dtype)), B)
    else:
        left = Block(data, B, torch.randint(len(data.x), (steps * B,), generator=torch.Generator().manual_seed(seed)))
    sizes = itertools.cycle((4, 3))
    while len(left):
        done = steps - len(left)
        block, left = left.at(next(sizes))
        if len(block) == 4:  # an epoch's last batch is smaller
            block = cut(block, 3 * B + 4)
        eps = [torch.randn(objective.samples, b, vae.d, generator=noise, dtype=dtype) for b in block.sizes()]
        between(done, vae, objective)
        made = make_steps(block, eps, partial(advanced, schedule), [len(block) - 1])
        terms.append(made.terms)
        norms.append(made.of(len(block) - 1).norm)
    return torch.cat(terms, 1), torch.stack(norms), Scored(vae, objective), optimizer


def joined(some):
    """The data of several batches."""
    return Batch(*(torch.cat(v) for v in zip(*some, strict=True) if v[0] is not None))


def cut(block, n):
    """The first n data of a block."""
    if block.chosen is not None:
        return Block(block.rows, block.size, block.chosen[:n])
    return Block(Batch(*(v[:n] for v in block.rows if v is not None)), block.size)


def advanced(schedule):
    """Whether a schedule has moved the optimiser's options."""
    if schedule:
        schedule.step()
    return schedule is not None


def same(one, other, rtol):
    """Whether two trainings came to the same, states and buffers included."""
    for a, b in zip(one[:2], other[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
    a, b = one[2].state_dict(), other[2].state_dict()
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=rtol, atol=rtol)
    a, b = one[3].state_dict(), other[3].state_dict()
    assert a["param_groups"] == b["param_groups"] and a["state"].keys() == b["state"].keys()
    for i in a["state"]:
        assert a["state"][i].keys() == b["state"][i].keys()
        for key, v in a["state"][i].items():
            torch.testing.assert_close(v, b["state"][i][key], rtol=rtol, atol=rtol)


ELBO = Elbo(2)
MLP, CONV = (partial(kind, activation="tanh") for kind in (encoders.MLP, encoders.Conv))
KINDS = {
    # likelihoods
    "gaussian": (make, ELBO),
    "gaussian_learned": (partial(make, partial(likelihoods.GaussianLearned, s2=0.1, per_channel=True)), ELBO),
    "gaussian_learned_one": (partial(make, partial(likelihoods.GaussianLearned, s2=0.1, per_channel=False)), ELBO),
    "gaussian_optimal": (partial(make, partial(likelihoods.GaussianOptimal, rate=0.1)), ELBO),
    "gaussian_per_pixel": (partial(make, partial(likelihoods.GaussianPerPixel, floor=0.01)), ELBO),
    "laplace": (partial(make, partial(likelihoods.Laplace, scale=0.2)), ELBO),
    "continuous_bernoulli": (partial(make, likelihoods.ContinuousBernoulli), ELBO),
    "bernoulli": (partial(make, likelihoods.Bernoulli), ELBO),
    "logistic": (partial(make, partial(likelihoods.DiscretisedLogistic, scale=0.1, levels=LEVELS)), ELBO),
    "categorical": (partial(make, partial(likelihoods.Categorical, levels=LEVELS)), ELBO),
    # objectives
    "V=1": (make, Elbo(1)),
    "monte_carlo": (make, Elbo(2, kl="monte_carlo")),
    "stl": (make, Elbo(2, kl="monte_carlo", gradient="stl")),
    "score": (make, Elbo(2, gradient="score")),
    "detached": (make, Elbo(2, gradient="detached")),
    "beta": (make, Elbo(2, beta=4.0)),
    "warmup": (make, Elbo(2, warmup=15)),
    "free_bits": (make, Elbo(2, free_bits=0.05)),
    "iwae": (make, Iwae(3)),
    "iwae_stl": (make, Iwae(3, gradient="stl")),
    "iwae_dreg": (make, Iwae(3, gradient="dreg")),
    "note_eq20": (make, NoteEq20(2)),
    # encoders, decoders, posteriors, priors
    "linear": (partial(make, encoder=encoders.Linear, decoder=decoders.Linear), ELBO),
    "conv": (
        partial(
            make,
            encoder=partial(CONV, channels=[4, 8]),
            decoder=partial(decoders.Conv, channels=[8, 4], activation="relu"),
        ),
        ELBO,
    ),
    "full": (
        partial(make, encoder=lambda s, d: encoders.MLP(s, d, [20], "gelu", posteriors.Full(d))),
        ELBO,
    ),
    "flow": (
        partial(make, encoder=lambda s, d: encoders.MLP(s, d, [20], "silu", posteriors.Flow(d, 2, [8]))),
        ELBO,
    ),
    "mixture": (partial(make, prior=partial(priors.Mixture, components=3)), ELBO),
    "vamp": (partial(make, prior=partial(priors.Vamp, shape=S, components=3)), ELBO),
}
CONDITIONAL = partial(
    make,
    encoder=partial(MLP, hidden=[20], classes=4),
    decoder=partial(decoders.MLP, hidden=[20], activation="elu", classes=4),
)


@pytest.mark.parametrize("name", KINDS)
def test_the_graph_is_the_eager_step(name):
    """Every part: terms, norms, weights, buffers and the optimiser's state, in float64 but for rounding."""
    kind, objective = KINDS[name]
    vae, objective = kind(dtype=torch.float64), copy.deepcopy(objective).double()
    same(train(Compiled(None, interpreted), vae, objective), train(Eager(), vae, objective), 1e-9)


def test_labels_are_given_too():
    vae = CONDITIONAL(dtype=torch.float64)
    same(*(train(e, vae, ELBO, labels=True) for e in (Compiled(None, interpreted), Eager())), 1e-9)


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adam_decay": partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum": partial(torch.optim.SGD, lr=1e-4, momentum=0.9, weight_decay=0.1, fused=True),
    "nesterov": partial(torch.optim.SGD, lr=1e-4, momentum=0.9, nesterov=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-2, lr_decay=0.01, weight_decay=0.1, initial_accumulator_value=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("schedule", [None, schedules.Cosine(0.2, 0.0)], ids=["constant", "cosine"])
def test_the_rules_are_the_optimisers(name, clip, schedule):
    vae = make(dtype=torch.float64)
    compiled, eager = (
        train(e, vae, ELBO, OPTIMIZERS[name], clip=clip, schedule=schedule)
        for e in (Compiled(None, interpreted), Eager())
    )
    same(compiled, eager, 1e-6)  # fused Adam's bias corrections are float32's
    if clip:
        assert (eager[1] > clip).any()


def test_two_groups_of_parameters():
    def two(parameters):
        groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 1e-3, "weight_decay": 0.1}]
        return torch.optim.Adam(groups, 1e-2)

    vae = make(dtype=torch.float64)
    same(*(train(e, vae, ELBO, two) for e in (Compiled(None, interpreted), Eager())), 1e-6)


def cycle(optimizer, steps):
    """Changes Adam's betas too."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)


def anneal(done, vae, objective):
    objective.beta = 1.0 if done < 7 else 0.5


def freeze(done, vae, objective):
    vae.encoder.requires_grad_(done < 7)


def reset(done, vae, objective):
    if done == 7:
        with torch.no_grad():
            next(vae.parameters()).zero_()


def swap(done, vae, objective):
    """As Lightning's WeightAveraging does it."""
    if done == 7:
        p, *_ = vae.parameters()
        p.data.copy_(p.data.flip(0))


def replace(done, vae, objective):
    if done == 7:
        p, *_ = vae.parameters()
        p.data = p.data.flip(0)


CHANGES = [
    ({"schedule": cycle}, "engine: eager from step 2 on, as the optimiser's betas has changed"),
    ({"between": anneal}, "engine: eager from step 8 on, as beta of objective (Elbo) has changed"),
    ({"between": freeze}, "engine: eager from step 8 on, as requires_grad of vae.encoder.net.0.weight has changed"),
    ({"between": reset}, None),
    ({"between": swap}, None),
    ({"between": replace}, "engine: eager from step 8 on, as memory of vae.encoder.net.0.weight has changed"),
]
"""What a schedule or a callback may do, and what is then said."""


@pytest.mark.parametrize(("more", "said"), CHANGES)
def test_what_changes_later_is_no_less_so(more, said):
    told, vae = [], make(dtype=torch.float64)
    found = train(Compiled(None, interpreted), vae, ELBO, told=told.append, **more)
    same(found, train(Eager(), vae, ELBO, **more), 1e-6)
    assert told[1:] == ([said] if said else [])


def test_an_optimiser_that_forgets_has_forgotten():
    found, told = [], []
    for engine in Compiled(None, interpreted), Eager():
        kept = []

        def forget(done, vae, objective, kept=kept):
            if done == 7:
                kept[0].state.clear()

        def kind(parameters, kept=kept):
            kept.append(adam(parameters))
            return kept[0]

        found.append(train(engine, make(dtype=torch.float64), ELBO, kind, told=told.append, between=forget))
    same(*found, 1e-6)
    assert told[1].startswith("engine: eager from step 8 on, as optimiser's state of vae.")


# What cannot be compiled is said in one line, and made eagerly


def test_hooks_are_told():
    vae = make()
    vae.decoder.register_forward_hook(lambda *args: None)
    assert "a hook of vae.decoder (MLP) looks inside a step" in refused(vae)
    vae = make()
    next(vae.encoder.parameters()).register_hook(lambda grad: None)
    assert "a hook of vae.encoder.net.0.weight looks inside a step" in refused(vae)

    def hooked(parameters):
        optimizer = adam(parameters)
        optimizer.register_step_post_hook(lambda *args: None)
        return optimizer

    assert "a hook of the optimiser looks inside a step" in refused(optimizer=hooked)


def test_a_parameter_that_was_frozen_for_a_while_is_told():
    """Adam's bias correction goes by each parameter's own steps."""
    vae = make()

    def later(parameters):
        optimizer = adam(parameters)
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        parameters[0].grad = None
        optimizer.step()
        return optimizer

    assert "a parameter was not moved in each step so far" in refused(vae, optimizer=later, taken=2)


class Peeking(nn.Module):
    """Looks at a value."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    """Changes in Python."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls > 3 else 2 * x


def refused(vae=None, objective=ELBO, optimizer=adam, engine=None, **more):
    """What is said where the steps are left to the eager stepper, which is what comes back."""
    vae, lines, [example] = vae or make(), [], batches(1)
    work = Work(vae, objective, optimizer(list(vae.parameters())), None, example, 10, 0, None, lines.append)

    def eager(batch, eps, norm):
        raise AssertionError

    made = (engine or Compiled(None, interpreted)).start(work._replace(**more), eager)
    assert isinstance(made, engines.OneByOne) and made.step is eager
    [line] = lines
    assert "\n" not in line and line.startswith("engine: eager, as ")
    return line


@pytest.mark.parametrize(("part", "words"), [(Peeking(), "DataDependent"), (Counting(), "calls from step to step")])
def test_a_part_that_cannot_be_compiled_is_named(part, words):
    vae = make()
    vae.decoder.net.append(part)
    line = refused(vae)
    assert f"vae.decoder.net.3 ({type(part).__name__})" in line and words in line
    assert getattr(part, "calls", 0) == 0  # the model itself is left as it was


def test_an_optimiser_that_cannot_be_compiled_is_named():
    assert "optimizer RMSprop has no compiled form" in refused(optimizer=lambda p: torch.optim.RMSprop(p, 1e-3))
    assert "with amsgrad" in refused(optimizer=lambda p: torch.optim.Adam(p, amsgrad=True))

    class Mine(torch.optim.SGD):
        pass

    assert "optimizer Mine" in refused(optimizer=lambda p: Mine(p, 1e-3))


def test_an_obstacle_is_told():
    assert refused(obstacle="it is late") == "engine: eager, as it is late"


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        line = refused(engine=Compiled(None))
    cpp_builder.cpp_compiler_search.cache_clear()
    assert "install g++" in line


def test_a_compiler_that_does_not_know_the_instructions_is_asked_for_those_it_knows(monkeypatch):
    asked = []

    def compile(graph, given, options):
        asked.append(options)
        return graph if "cpp.vec_isa_ok" not in options else 1 / 0

    monkeypatch.setattr(torch._inductor, "compile", compile)
    one = make_fx(torch.neg)(torch.ones(1))
    assert engines.inductor(one, [torch.ones(1)])(torch.ones(1)) == -1
    assert asked[0] == asked[1] | {"cpp.vec_isa_ok": True}


def test_a_compiler_that_fails_is_no_harm():
    def broken(graph, given):
        raise RuntimeError("a\nb")

    assert refused(engine=Compiled(None, broken)).endswith("RuntimeError: a b")


def test_auto_goes_by_the_length_of_the_run():
    assert "repays from 11 steps on, and these are 10" in refused(engine=Auto(11, None))
    engine = Auto(10, None)
    engine.compiled = Compiled(None, interpreted)
    train(engine, make(), ELBO, steps=10)  # by a CompiledStep
    assert engine.seconds > 0
    with pytest.raises(ValueError, match=r"^steps must be a whole number"):
        Auto(0, None)


def test_a_buffer_that_is_replaced_is_named():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
            return x + self.mean

    vae = make()
    vae.decoder.net.append(Average())
    assert "the buffer vae.decoder.net.3.mean is replaced" in refused(vae)


def test_torchs_own_random_numbers_are_the_eager_ones():
    vae = make(dtype=torch.float64)
    vae.encoder.net.append(nn.Dropout(0.3))
    found = []
    for engine in (Compiled(None, interpreted), Eager()):
        torch.manual_seed(5)
        found.append(train(engine, vae, ELBO))
    same(*found, 1e-9)


# In a LitVAE


def by(engine, settings):
    """The same kind of run, by another engine."""
    other = copy.copy(settings)

    def lit():
        found = settings.lit()
        found.engine = engine()
        return found

    other.lit = lit
    return other


INTERPRETED = partial(Compiled, None, interpreted)


def contents(folder):
    """What a run comes to, but for how long compiling took."""
    *rest, rows = test_resume.contents(folder)
    rows = [{k: v for k, v in row.items() if k != "train/compile_seconds"} for row in rows]
    return [*rest, [row for row in rows if set(row) != {"step"}]]


def close(a, b):
    """Equal but for rounding."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return all(close(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b if isinstance(a, str | None) else torch.as_tensor(a).allclose(torch.as_tensor(b), 1e-4, 1e-5)


@pytest.mark.parametrize("name", test_resume.SETTINGS)
def test_a_run_comes_to_the_same_under_another_engine(tmp_path, name, capsys):
    """With blocks, validation, checkpoints, schedules, smaller last batches; `free` stays eager, and says so."""
    settings = test_resume.SETTINGS[name]
    test_resume.fit(tmp_path / "eager", settings)
    assert capsys.readouterr().out == ""
    test_resume.fit(tmp_path / "compiled", by(INTERPRETED, settings))
    said = capsys.readouterr().out.strip()
    assert said.startswith("engine: eager, as the gradients of Free" if name == "free" else "engine: compiled, in ")
    seconds = [
        row for row in test_resume.rows(tmp_path / "compiled" / "history.jsonl") if "train/compile_seconds" in row
    ]
    assert len(seconds) == (name != "free")
    assert close(contents(tmp_path / "compiled"), contents(tmp_path / "eager"))


@pytest.mark.parametrize("name", ["redrawn", "optimal"])
def test_a_compiled_run_that_is_stopped_comes_to_the_same_bits(tmp_path, name):
    settings = by(INTERPRETED, test_resume.SETTINGS[name])
    test_resume.fit(tmp_path / "whole", settings)
    for hook, n in (("on_train_batch_start", 4), ("on_train_batch_end", 3), ("on_validation_end", 1)):
        with pytest.raises(test_resume.Killed):
            test_resume.fit(tmp_path / "stopped", settings, test_resume.Stop(hook, n), every_seconds=1e-9)
    test_resume.fit(tmp_path / "stopped", settings, every_seconds=1e-9)
    assert test_resume.same(contents(tmp_path / "stopped"), contents(tmp_path / "whole"))


@pytest.mark.parametrize("max_steps", [1, 10])
def test_a_limit_in_mid_block(tmp_path, max_steps):
    settings = test_resume.SETTINGS["default"]
    for name, kind in (("eager", settings), ("compiled", by(INTERPRETED, settings))):
        test_resume.fit(tmp_path / name, kind, max_steps=max_steps)
    assert close(contents(tmp_path / "compiled"), contents(tmp_path / "eager"))


@pytest.mark.parametrize("first", [Eager, INTERPRETED])
def test_another_engine_goes_on(tmp_path, first):
    settings = test_resume.SETTINGS["default"]
    with pytest.raises(test_resume.Killed):
        test_resume.fit(tmp_path / "both", by(first, settings), test_resume.Stop("on_train_batch_start", 7))
    test_resume.fit(tmp_path / "both", by(INTERPRETED if first is Eager else Eager, settings))
    test_resume.fit(tmp_path / "eager", settings)
    assert close(contents(tmp_path / "both"), contents(tmp_path / "eager"))


class Overflow(nn.Module):
    """Breaks the decoder's output in its fourth step in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("t", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.t += 1
        return x / (self.t < 4)


@pytest.mark.parametrize("engine", [Eager, INTERPRETED])
def test_a_loss_that_is_not_finite_is_named(engine):
    vae = test_lit.make_vae()
    vae.decoder.net.append(Overflow())
    with pytest.raises(FloatingPointError, match=r"^rec not finite at step 4 \(epoch 0\)$"):
        test_lit.fit(vae, engine=engine())


def told(capsys, **more):
    test_lit.fit(test_lit.make_vae(), engine=INTERPRETED(), epochs=1, **more)
    return capsys.readouterr().out.strip()


def test_what_stands_in_the_way_is_named(capsys):
    assert told(capsys, callbacks=[test_lit.Watcher()]) == "engine: eager, as the callback Watcher looks inside a step"
    assert told(capsys, precision="bf16-mixed") == "engine: eager, as trainer.precision is bf16-mixed"
    assert told(capsys, clip=1.0, gradient_clip_algorithm="value").startswith("engine: eager, as trainer.gradient_clip")
    assert told(capsys, detect_anomaly=True) == "engine: eager, as trainer.detect_anomaly looks inside a step"
    assert told(capsys, precision="64-true").startswith("engine: compiled, in ")


@pytest.mark.filterwarnings("error:.*lr_scheduler")
def test_a_schedule_does_not_complain(capsys):
    assert told(capsys, schedule=schedules.Cosine(0.1, 0.0)).startswith("engine: compiled, in ")


# By the true compiler

COVER = {
    "gaussian, eq20": (make, NoteEq20(2)),
    "learned, stl, mixture": (
        partial(
            make,
            partial(likelihoods.GaussianLearned, s2=0.1, per_channel=True),
            prior=partial(priors.Mixture, components=3),
        ),
        Elbo(2, kl="monte_carlo", gradient="stl"),
    ),
    "optimal, warmup": (partial(make, partial(likelihoods.GaussianOptimal, rate=0.1)), Elbo(1, warmup=300)),
    "per pixel, iwae, full": (
        partial(KINDS["full"][0], partial(likelihoods.GaussianPerPixel, floor=0.01)),
        Iwae(2),
    ),
    "laplace, score": (partial(make, partial(likelihoods.Laplace, scale=0.2)), Elbo(2, gradient="score")),
    "continuous, iwae stl": (partial(make, likelihoods.ContinuousBernoulli), Iwae(2, gradient="stl")),
    "bernoulli, iwae dreg, conv": (partial(KINDS["conv"][0], likelihoods.Bernoulli), Iwae(2, gradient="dreg")),
    "logistic, free bits": (KINDS["logistic"][0], Elbo(2, free_bits=0.05)),
    "categorical, linear, detached": (
        partial(KINDS["linear"][0], partial(likelihoods.Categorical, levels=LEVELS)),
        Elbo(2, gradient="detached"),
    ),
    "flow, vamp": (
        partial(KINDS["flow"][0], prior=partial(priors.Vamp, shape=S, components=3)),
        Elbo(2, kl="monte_carlo", beta=2.0),
    ),
}
"""Every part and objective at least once."""


class Together:
    """The steps of several trainings, compiled as one: that takes less than to compile them one by one."""

    def __init__(self, works):
        self.steps = [Step(work) for work in works]
        graphs = [step.graph() for step in self.steps]

        def step_all(*values):
            rest = iter(values)
            sizes = [len(step.held) + len(step.given) for step in self.steps]
            return [v for n, graph in zip(sizes, graphs, strict=True) for v in graph(*islice(rest, n))]

        values = [v for step in self.steps for v in (*step.held.values(), *step.given.values())]
        with torch.no_grad():
            self.call = engines.inductor(make_fx(step_all, tracing_mode="fake")(*values), values)

    def __call__(self, given):
        """The terms and the norm of each training's step, of what each is given."""
        parts = zip(self.steps, given, strict=True)
        with torch.no_grad():
            found = self.call(*(v for step, part in parts for v in (*step.held.values(), *part)))
        return list(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize(
    "names", [pytest.param([*COVER][:3], marks=pytest.mark.slow), pytest.param([*COVER], marks=pytest.mark.minutes)]
)
def test_compiled_losses_are_the_eager_ones(names, tmp_path):
    """Within 1e-5, relative, over 500 steps."""
    cover = {name: COVER[name] for name in names}
    steps, noise = 500, torch.Generator().manual_seed(3)
    [example] = batches(1)
    eager, works = [], []
    for kind, objective in cover.values():
        for found in (eager, works):
            vae, mine = kind().train(), copy.deepcopy(objective)
            optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
            found.append(Work(vae, mine, optimizer, None, example, steps, 0, None, print))
    with engines.cache_folder(str(tmp_path)):
        together = Together(works)
    worst = dict.fromkeys(cover, 0.0)
    for t, batch in enumerate(batches(steps), 1):
        eps = [torch.randn(work.objective.samples, B, D, generator=noise) for work in works]
        given = [
            (step.numbers([step.figures(t)])[0], batch.x, batch.index, e)
            for step, e in zip(together.steps, eps, strict=True)
        ]
        for name, work, e, (terms, norm) in zip(cover, eager, eps, together(given), strict=True):
            its = work.objective(work.vae, batch, e)
            work.optimizer.zero_grad()
            its.loss.mean().backward()
            total = torch.nn.utils.get_total_norm([p.grad for p in work.vae.parameters()])
            work.optimizer.step()
            of_loss = its.loss.abs().mean()  # the KL may be near 0
            for a, b in [*zip(terms, its, strict=True), (norm, total)]:
                error = (a.mean() - b.mean()).abs() / (b.abs().mean() if b is total else of_loss.max(b.abs().mean()))
                worst[name] = max(worst[name], error.item())
    assert not {name: error for name, error in worst.items() if error > 1e-5}


WHOLE = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_engine, test_resume
from pathlib import Path
test_resume.fit(Path(sys.argv[2]), test_engine.truly(sys.argv[3]))
"""


def truly(cache):
    """Runs that compile."""
    return by(partial(Compiled, cache), test_resume.SETTINGS["default"])


@pytest.mark.slow
def test_what_is_compiled_is_kept_and_a_run_goes_on_to_the_same_bits(tmp_path, capsys):
    """The run that is not stopped compiles, in a process of its own; this process finds its code."""
    from torch._dynamo.utils import counters

    command = [
        sys.executable,
        "-c",
        WHOLE,
        str(Path(__file__).parent),
        str(tmp_path / "whole"),
        str(tmp_path / "cache"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "engine: compiled, in " in done.stdout, done.stdout + done.stderr
    settings = truly(str(tmp_path / "cache"))
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    counters.clear()
    with pytest.raises(test_resume.Killed):
        test_resume.fit(tmp_path / "stopped", settings, test_resume.Stop("on_train_batch_start", 6), every_seconds=1e-9)
    test_resume.fit(tmp_path / "stopped", settings, every_seconds=1e-9)
    assert capsys.readouterr().out.count("engine: compiled, in ") == 2
    assert counters["inductor"]["fxgraph_cache_hit"] == 2 and not counters["inductor"]["fxgraph_cache_miss"]
    assert test_resume.same(contents(tmp_path / "stopped"), contents(tmp_path / "whole"))
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before


class Recorder:
    """Stands for a CUDA graph: what is recorded is not computed, but whenever it is replayed, in the same memory."""

    recording = None

    def replay(self):
        self.work()

    @classmethod
    @contextmanager
    def graph(cls, one):
        cls.recording = one
        yield
        cls.recording = None

    @classmethod
    def add(cls, total, x):
        """Moves `total` by x; what it is then, as a new tensor."""
        found = torch.zeros_like(total)

        def work():
            total.add_(x)
            found.copy_(total)

        if cls.recording is None:
            work()
        else:
            cls.recording.work = work
        return [found]


def test_what_is_replayed_reads_what_each_step_is_given_and_keeps_what_it_found(monkeypatch):
    """And leaves what it is given as it is."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", Recorder.graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    total, given = torch.zeros(2), [torch.full((2,), float(k)) for k in range(1, 5)]
    call = Replay(Recorder.add, [total])
    found = [call(total, x) for x in given]
    assert [v.tolist() for [v] in found] == [[1, 1], [3, 3], [6, 6], [10, 10]] and total.tolist() == [10, 10]
    assert [x.tolist() for x in given] == [[1, 1], [2, 2], [3, 3], [4, 4]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_make_the_eager_steps(capsys):
    trained = []
    for engine in (Eager(), Compiled(None)):
        _, lit, _ = test_lit.fit(test_lit.make_vae(), engine=engine, epochs=10, accelerator="gpu")
        trained.append(lit.state_dict())
    assert "engine: compiled, in " in capsys.readouterr().out and lit.step.call.graph is not None
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, rtol=1e-3, atol=1e-4)


def test_the_quick_functions_are_what_they_stand_for():
    x = torch.cat([torch.linspace(-20, 20, 400_001), torch.logspace(-38, 0, 100_001), torch.tensor([0.0, torch.inf])])
    found, exact = tanh(x), x.double().tanh()
    assert ((found - exact).abs() <= 4e-7 * exact.abs()).all() and (found.abs() <= 1).all()
    y, nan = x.clamp(-100, 100).sort().values, torch.tensor(torch.nan)
    exact = y.double().sigmoid()
    assert ((sigmoid(y) - exact).abs() <= 4e-7 * exact + 1e-38).all()
    for target in 0.0, 0.3, 1.0:
        target = torch.tensor(target)
        found = cross_entropy(y, target)
        # torch's own of float64 cancels where y is far below 0: it is off by 1e-15, of 1e-9
        terms = y.double().clamp(min=0), -target.double() * y.double(), y.double().abs().neg().exp().log1p()
        # rounding is relative to the sum's terms; the least positive float32 is 1e-38
        assert ((found - sum(terms)).abs() <= 4e-7 * sum(term.abs() for term in terms) + 1e-38).all()
    assert tanh(nan).isnan() and cross_entropy(nan, nan).isnan() and sigmoid(nan).isnan()


def test_the_quick_functions_are_taken_for_float32_alone():
    def some(x):
        return binary_cross_entropy_with_logits(torch.addmm(x[0], x, x.T).tanh(), x.sigmoid(), reduction="none")

    for dtype, kept in (torch.float32, 0), (torch.float64, 1):
        x = torch.rand(5, 5, dtype=dtype)
        graph = quickened(make_fx(some, tracing_mode="fake")(x))
        assert [len(graph.graph.find_nodes(op="call_function", target=target)) for target in QUICK] == [kept] * 4
        torch.testing.assert_close(graph(x), some(x), rtol=1e-6 if dtype is torch.float32 else 1e-15, atol=0)
    x = torch.rand(5)
    mean = make_fx(lambda y, x: binary_cross_entropy_with_logits(y, x), tracing_mode="fake")(x, x.clone())
    assert torch.equal(quickened(mean)(x, x), binary_cross_entropy_with_logits(x, x))


def boxed(function):
    """A compiled function as torch has it: `current_callable` is Inductor's own, and empties the list it is given."""

    def inner(values):
        own = [*values]
        values.clear()
        return function(*own)

    def call(*values):
        return moved(*values)

    call.current_callable = inner
    return call


def moved(x, y):
    return [x.add_(y), x.sum()]


def test_inductors_own_function_is_called_where_it_does_the_same():
    x, y = torch.rand(3), torch.rand(3)
    whole, before = boxed(moved), x.clone()
    found = bare(whole, [x, y])
    assert found is not whole and torch.equal(x, before)
    for a, b in zip(found(x, y), [before + y, (before + y).sum()], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(x, before + y)


@pytest.mark.parametrize(
    "other", [lambda x, y: [x.clone(), x.add_(y).sum()], lambda x, y: [x + y], lambda x: moved(x, x)]
)
def test_inductors_own_function_is_not_called_where_it_does_something_else(other):
    call = boxed(other)
    assert bare(call, [torch.rand(3), torch.rand(3)]) is call


def test_inductors_own_function_is_not_called_where_torchs_is_needed():
    x, call = torch.rand(6), boxed(moved)
    assert bare(call, [x[:3], x[3:]]) is call  # which share memory
    assert bare(moved, [torch.rand(3), torch.rand(3)]) is moved  # an older release of torch


def test_trying_draws_no_random_numbers():
    given, call = [torch.rand(3), torch.rand(3)], boxed(lambda x, y: [x.add_(torch.rand(3)), y])
    state = torch.get_rng_state()
    bare(call, given)
    assert torch.equal(torch.get_rng_state(), state)
