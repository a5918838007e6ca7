"""Runs that are trained together come to what each comes to alone."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from test_engine import CHANGES, KINDS, B, Counting, adam, batches, interpreted, joined, make, same, train

from vae_lab import decoders, encoders, likelihoods, posteriors, schedules
from vae_lab.engine import pack as packs
from vae_lab.engine.engines import Eager
from vae_lab.engine.pack import Pack, Unpacked
from vae_lab.engine.stack import Stack
from vae_lab.engine.step import Work
from vae_lab.objectives import Elbo, Iwae, NoteEq20


def together(*runs, **more):
    """Trains runs, each given by the arguments of `train`, together; what `train` gives of each; what was told."""
    pack, found, told = Pack(compiler=interpreted), {}, []

    def one(engine, i, run):
        try:
            found[i] = train(engine, told=told.append, **run, **more)
        except Exception as error:
            found[i] = error

    for i, run in enumerate(runs):
        pack.add(partial(one, i=i, run=run), nullcontext)
    pack.run()
    return [found[i] for i in range(len(runs))], told


def each(*runs, rtol=1e-5, **more):
    """Whether runs come to the same together and alone."""
    packed, told = together(*runs, **more)
    assert len(told) == len(runs) and all(f"one of {len(runs)} runs that are packed" in line for line in told), told
    for run, result in zip(runs, packed, strict=True):
        same(train(Eager(), **run, **more), result, rtol)


@pytest.mark.parametrize("name", KINDS)
def test_every_part_is_the_same_in_a_pack(name):
    vae, objective = KINDS[name]
    runs = []
    for seed in (0, 1, 2):
        model = vae(dtype=torch.float64)
        with torch.no_grad():
            torch.manual_seed(seed)
            for p in model.parameters():
                p.add_(0.01 * seed * torch.randn_like(p))
        runs.append({"vae": model, "objective": objective, "seed": seed})
    if name == "gaussian_optimal":  # scores each datum by its whole batch: half a batch is another thing
        packed, told = together(*runs)
        assert "not packed, as a model in the stack is not the same as alone" in told[0]
        for run, result in zip(runs, packed, strict=True):
            same(train(Eager(), **run), result, 0.0)
        return
    each(*runs, rtol=1e-9)


def test_runs_differ_in_s2_beta_and_learning_rate():
    runs = [
        {
            "vae": make(partial(likelihoods.Gaussian, s2=0.1 * (i + 1)), seed=i, dtype=torch.float64),
            "objective": Elbo(2, beta=1.0 + i),
            "optimizer": partial(torch.optim.Adam, lr=1e-3 * (i + 1), fused=True),
            "seed": i,
        }
        for i in range(4)
    ]
    each(*runs, rtol=1e-9, clip=5.0, schedule=schedules.Cosine(0.2, 0.0))


@pytest.mark.parametrize("room", [1, 2 * 3 * B * 64 * 8, 2**30], ids=["one", "two", "all"])
@pytest.mark.parametrize("labels", [False, True])
def test_runs_draw_from_the_same_data(room, labels, monkeypatch):
    """Whose batches are gathered for all at once, one step's or several steps' at a time."""
    monkeypatch.setattr("vae_lab.engine.stack.CACHED", room)
    gathered, gather = [], Stack.gathered
    monkeypatch.setattr(Stack, "gathered", lambda *given: gathered.append(given) or gather(*given))
    data = joined(batches(7, labels=labels, dtype=torch.float64))
    runs = [{"vae": make(seed=i, dtype=torch.float64), "objective": Elbo(2), "seed": i, "data": data} for i in range(3)]
    each(*runs, rtol=1e-9, labels=labels)
    assert gathered


def test_runs_draw_from_data_of_their_own(monkeypatch):
    gathered = []
    monkeypatch.setattr(Stack, "gathered", lambda *given: gathered.append(given))
    some = [joined(batches(7 + i, dtype=torch.float64)) for i in range(2)]
    runs = [
        {"vae": make(seed=i, dtype=torch.float64), "objective": Elbo(2), "data": data} for i, data in enumerate(some)
    ]
    each(*runs, rtol=1e-9)
    assert not gathered


def test_a_run_that_is_done_leaves_the_others():
    """And where half of them are, the others are stacked anew."""
    runs = [
        {"vae": make(seed=i, dtype=torch.float64), "objective": Elbo(1), "steps": n} for i, n in enumerate((4, 9, 20))
    ]
    packed, told = together(*runs)
    assert len(told) == 3 and all("one of 3 runs that are packed" in line for line in told)
    for run, result in zip(runs, packed, strict=True):
        same(train(Eager(), **run), result, 1e-9)


def test_a_run_that_breaks_leaves_the_others():
    runs = [{"vae": make(seed=i), "objective": Elbo(1)} for i in range(3)]
    runs[1]["schedule"] = lambda optimizer, steps: 1 / 0
    (one, broken, other), told = together(*runs)
    assert isinstance(broken, ZeroDivisionError) and all("one of 2 runs that are packed" in line for line in told)
    for run, result in zip(runs[::2], (one, other), strict=True):
        same(train(Eager(), **run), result, 1e-5)


def of(*ds, objective, **parts):
    """Runs that differ in d, and in their seeds."""
    return [
        {"vae": make(seed=i, d=d, dtype=torch.float64, **parts), "objective": objective, "seed": i}
        for i, d in enumerate(ds)
    ]


CONV = {
    "encoder": partial(encoders.Conv, channels=[4, 8], activation="tanh"),
    "decoder": partial(decoders.Conv, channels=[8, 4], activation="tanh"),
}
LINEAR = {"encoder": encoders.Linear, "decoder": decoders.Linear}


@pytest.mark.parametrize("parts", [{}, CONV, LINEAR], ids=["mlp", "conv", "linear"])
def test_runs_differ_in_d(parts):
    each(*of(3, 1, 5, 3, objective=Elbo(2), **parts), rtol=1e-9)


FULL = {"encoder": lambda shape, d: encoders.MLP(shape, d, [20], "tanh", posteriors.Full(d))}


@pytest.mark.parametrize(
    ("objective", "parts", "why"),
    [
        (Elbo(2, kl="monte_carlo"), {}, "a latent dimension more would not be without effect"),
        (Elbo(2, free_bits=0.1), {}, "a model in the stack is not the same as alone"),
        (Iwae(3), {}, "a latent dimension more would not be without effect"),
        (Elbo(2), FULL, "the sizes of vae.encoder.net.2.weight are not proportional to d"),
    ],
)
def test_where_more_latent_dimensions_do_something_runs_are_made_alone(objective, parts, why):
    runs = of(3, 2, objective=objective, **parts)
    packed, told = together(*runs)
    assert told == [f"engine: not packed, as {why}"] * 2
    for run, result in zip(runs, packed, strict=True):
        same(train(Eager(), **run), result, 0.0)


def test_runs_are_the_same_however_many_steps_there_is_room_for(monkeypatch):
    monkeypatch.setattr("vae_lab.engine.stack.ROOM", 1)
    each(*of(3, 3, objective=Elbo(2)), rtol=1e-9)


def test_padded_weights_stay_exactly_zero():
    pack = Pack(compiler=interpreted)
    for d in (2, 4):
        pack.add(lambda engine, d=d: train(engine, make(d=d), Elbo(1)), nullcontext)
    pack.run()
    stack = pack.stack
    weight = stack.held["vae.decoder.net.0.weight"]
    assert weight.shape[2] == 4 and weight[1].abs().min() > 0
    assert (weight[0, :, 2:] == 0).all() and weight[0, :, :2].abs().min() > 0
    for key in ("exp_avg", "exp_avg_sq"):
        assert (stack.held[f"vae.decoder.net.0.weight/{key}"][0, :, 2:] == 0).all()


@pytest.mark.parametrize(("more", "said"), CHANGES)
def test_what_changes_later_concerns_one_run(more, said):
    runs = of(3, 3, 3, 3, objective=Elbo(1))
    some = runs[1:2] if "between" in more else runs  # whose schedules differ are not stacked
    for run in some:
        run |= more
    packed, told = together(*runs)
    later = [line for line in told if "one of 4 runs that are packed" not in line]
    assert len(told) == 4 + len(later) and later == ([said] * len(some) if said else [])
    for run, result in zip(runs, packed, strict=True):
        same(train(Eager(), **run), result, 1e-6)


def test_a_parameter_without_a_gradient_does_not_decay():
    """(20) does not depend on s2."""
    learned = partial(likelihoods.GaussianLearned, s2=0.1, per_channel=False)
    decaying = partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1)
    vaes = [make(learned, dtype=torch.float64, seed=seed) for seed in range(2)]
    runs = [{"vae": vae, "objective": NoteEq20(2), "optimizer": decaying} for vae in vaes]
    packed, _ = together(*runs)
    for run, result in zip(runs, packed, strict=True):
        torch.testing.assert_close(result[2].state_dict(), train(Eager(), **run)[2].state_dict(), rtol=1e-6, atol=1e-6)


def sweeping(*runs):
    """Trains runs as a sweep has them trained: each first asks whether it can be; what `train` gives, or raises."""
    pack, found, told = Pack(compiler=interpreted), {}, []

    def one(engine, i, run):
        vae, objective = run["vae"], run["objective"]
        optimizer = run.get("optimizer", adam)(list(vae.parameters()))
        [example] = batches(1, dtype=next(vae.parameters()).dtype)
        try:
            engine.join(Work(vae, objective, optimizer, None, example, 0, 0, run.pop("obstacle", None), told.append))
            found[i] = train(engine, told=told.append, **run)
        except Unpacked as error:
            found[i] = str(error)

    for i, run in enumerate(runs):
        pack.add(partial(one, i=i, run=run), nullcontext)
    pack.run()
    return [found[i] for i in range(len(runs))], told


def test_what_cannot_be_stacked_leaves_before_it_begins():
    runs = of(3, 3, 3, 3, objective=Elbo(1))
    runs[1]["obstacle"], runs[2]["optimizer"] = "of this", partial(torch.optim.RMSprop, lr=1e-3)
    (one, hindered, ruleless, other), told = sweeping(*runs)
    assert hindered == "of this" and ruleless == "optimizer RMSprop has no compiled form"
    assert len(told) == 2 and all("one of 2 runs that are packed" in line for line in told)
    for run, result in zip(runs[::3], (one, other), strict=True):
        same(train(Eager(), **run), result, 1e-9)


def test_one_that_is_left_alone_leaves_too():
    runs = of(3, 3, objective=Elbo(1))
    runs[0]["obstacle"] = "of this"
    assert sweeping(*runs) == (["of this", "no other run is left that it could be packed with"], [])


def test_all_leave_that_cannot_be_one_stack():
    found, told = sweeping(*of(3, 2, objective=Elbo(2, free_bits=0.1)))
    assert found == ["a model in the stack is not the same as alone"] * 2 and not told


def test_all_leave_whose_step_cannot_be_traced():
    runs = of(3, 3, objective=Elbo(1))
    for run in runs:
        run["vae"].decoder.net.append(Counting())
    found, told = sweeping(*runs)
    assert not told and all("Counting) changes its attribute" in why for why in found), found


def test_where_nothing_can_be_compiled_runs_are_packed_nonetheless():
    def broken(graph, given):
        raise RuntimeError("no compiler")

    runs, pack, found, told = of(3, 2, objective=Elbo(1)), Pack(compiler=broken), [], []
    for run in runs:
        pack.add(lambda engine, run=run: found.append(train(engine, told=told.append, **run)), nullcontext)
    pack.run()
    assert told == ["engine: one of 2 runs that are packed, not compiled, as RuntimeError: no compiler"] * 2
    for run, result in zip(runs, found, strict=True):
        same(train(Eager(), **run), result, 1e-9)


def test_what_was_compiled_before_repays_sooner(tmp_path):
    compiled = []

    def compiler(graph, given):
        compiled.append(len(given))
        return graph

    for steps, times in ((100, 0), (0, 1), (100, 2), (1000, 2)):  # these runs make 28
        before = len(compiled)
        pack = Pack(steps, str(tmp_path), compiler)
        for run in of(2, 2, objective=Elbo(1)):
            pack.add(lambda engine, run=run: train(engine, **run), nullcontext)
        pack.run()
        assert len(compiled) == times
        assert all((member.seconds > 0) == (times > before) for member in pack.members)


def test_a_stack_that_cannot_be_made_anew_is_no_other_stack(monkeypatch):
    """Steps of fewer models would move others than those that ask for them."""
    made = []

    def stack(works):
        made.append(len(works))
        return Stack(works) if len(made) == 1 else 1 / 0

    monkeypatch.setattr(packs, "Stack", stack)
    runs = [{"vae": make(seed=i), "objective": Elbo(1), "steps": n} for i, n in enumerate((4, 9, 20))]
    with pytest.raises(ZeroDivisionError):
        together(*runs)
    assert made == [3, 1]
