"""The update of an eager step: what calls the kernel comes to the optimiser's own bits, and is not taken for more."""

import copy
from functools import partial

import pytest
import torch
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from vae_lab.engine.update import FusedAdam, update_of


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((7, 5), (5,), (130,), ())]


def groups(parameters):
    return Adam([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.1, "weight_decay": 0.1}], fused=True)


fused = partial(Adam, lr=1e-2, fused=True)
KINDS = {
    "adam": fused,
    "options": partial(fused, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, maximize=True),
    "adamw": partial(AdamW, lr=1e-2, weight_decay=0.1, fused=True),
    "groups": groups,
}


def step(optimizer, gradients, update):
    """A step of `update` with these gradients."""
    for p, g in zip((p for group in optimizer.param_groups for p in group["params"]), gradients, strict=True):
        p.grad = g
    update()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KINDS)
def test_the_kernel_makes_the_optimisers_steps(name, dtype):
    one, other = (KINDS[name](parameters(dtype)) for _ in range(2))
    schedules = [OneCycleLR(o, 0.1, 20) for o in (one, other)]  # of the learning rate, and of a beta
    update = None
    for t in range(12):
        if t in (1, 6):  # where a block begins
            update = update_of(one)
            assert isinstance(update, FusedAdam)
        if t == 8:
            one.load_state_dict(copy.deepcopy(one.state_dict()))
            update = update_of(one)
        gradients = [torch.randn_like(p) for p in parameters(dtype)]
        if t in (4, 10):  # nothing reached this one
            gradients[2] = None
        step(one, gradients, update or one.step)
        step(other, gradients, other.step)
        for schedule in schedules:
            schedule.step()
    for a, b in zip(one.param_groups, other.param_groups, strict=True):
        torch.testing.assert_close(a["params"], b["params"], rtol=0, atol=0)
    for a, b in zip(one.state.values(), other.state.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert [float(s["step"]) for s in one.state.values()] == [12, 12, 10, 12]


class Other(Adam):
    """What it does is not known."""


@pytest.mark.parametrize(
    "kind",
    [
        SGD,
        Adam,
        partial(Other, fused=True),
        partial(Adam, foreach=True),
        partial(fused, amsgrad=True),
        partial(fused, lr=torch.tensor(0.1)),
        lambda given: fused([given[0].detach().double().requires_grad_(), *given[1:]]),
    ],
    ids=["sgd", "plain", "derived", "foreach", "amsgrad", "tensor", "mixed"],
)
def test_what_is_more_is_left_to_the_optimiser(kind):
    optimizer = kind(parameters())
    [group] = optimizer.param_groups
    step(optimizer, [torch.ones_like(p) for p in group["params"]], optimizer.step)
    assert update_of(optimizer) == optimizer.step


def test_what_has_no_state_yet_is_left_to_the_optimiser():
    optimizer = fused(parameters())
    assert update_of(optimizer) == optimizer.step
    step(optimizer, [*parameters()[:3], None], optimizer.step)
    assert update_of(optimizer) == optimizer.step
    assert len(optimizer.state) == 3


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_hooks_are_called(own, pre):
    optimizer, calls = fused(parameters()), []
    step(optimizer, parameters(), optimizer.step)
    if own:
        register = optimizer.register_step_pre_hook if pre else optimizer.register_step_post_hook
    else:
        register = register_optimizer_step_pre_hook if pre else register_optimizer_step_post_hook
    handle = register(lambda *args: calls.append(args))
    try:
        update_of(optimizer)()
    finally:
        handle.remove()
    assert len(calls) == 1
    assert isinstance(update_of(optimizer), FusedAdam)
