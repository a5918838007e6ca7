"""What torch's optimisers do to one parameter, written out, so that it can be compiled with the gradient's computation.

The state is the optimiser's own, tensor for tensor: the next step may be the optimiser's again.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

Group = dict[str, Any]
"""The options of some parameters, as in an optimiser's `param_groups`."""


class Rule(ABC):
    """The rule of one optimiser. All that it does is elementwise, so that the parameters of several models may be
    stacked."""

    unknown: tuple[str, ...] = ()
    """Options that have to be off."""

    @abstractmethod
    def numbers(self, group: Group, t: int) -> tuple[float, ...]:
        """What the step number t = 1, 2, ... takes from its number and from the learning rate of the moment."""

    @abstractmethod
    def begin(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        """The state before the first step."""

    @abstractmethod
    def update(self, p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, group: Group) -> None:
        """Moves the parameter p, whose gradient is g, and its state, in place; `numbers` are those of the step."""


@final
class AdamRule(Rule):
    """Kingma & Ba 2015; with `decoupled_weight_decay` Loshchilov & Hutter 2019."""

    unknown = ("amsgrad", "maximize", "differentiable")

    def numbers(self, group: Group, t: int) -> tuple[float, ...]:
        (beta1, beta2), lr = group["betas"], group["lr"]
        return lr / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t), 1 - lr * group["weight_decay"]

    def begin(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        t = torch.zeros((), dtype=torch.float32, device=p.device)
        return {"step": t, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, group: Group) -> None:
        rate, root, kept = numbers
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        if decay and group.get("decoupled_weight_decay"):
            p.mul_(kept)
        elif decay:
            g = g.add(p, alpha=decay)
        state["step"].add_(1)
        # m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
        m = state["exp_avg"].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        # p -= lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
        p.sub_(rate * (m / (v.sqrt() * root + group["eps"])))


@final
class SgdRule(Rule):
    """With momentum, also Nesterov's (Sutskever et al. 2013)."""

    unknown = ("dampening", "maximize", "differentiable")

    def numbers(self, group: Group, t: int) -> tuple[float, ...]:
        return (group["lr"],)

    def begin(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(p)} if group["momentum"] else {}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, group: Group) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            g = g.add(p, alpha=group["weight_decay"])
        if momentum:
            m = state["momentum_buffer"].mul_(momentum).add_(g)
            g = g.add(m, alpha=momentum) if group["nesterov"] else m
        p.sub_(numbers[0] * g)


@final
class AdagradRule(Rule):
    """Duchi et al. 2011."""

    unknown = ("maximize", "differentiable")

    def numbers(self, group: Group, t: int) -> tuple[float, ...]:
        return (group["lr"] / (1 + (t - 1) * group["lr_decay"]),)

    def begin(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        raise AssertionError("Adagrad has made its state when it is built")

    def update(self, p: Tensor, g: Tensor, state: dict[str, Tensor], numbers: Tensor, group: Group) -> None:
        if group["weight_decay"]:
            g = g.add(p, alpha=group["weight_decay"])
        state["step"].add_(1)
        # s += g^2,  p -= lr g / (sqrt(s) + eps)
        s = state["sum"].addcmul_(g, g)
        p.sub_(numbers[0] * (g / (s.sqrt() + group["eps"])))


def rule_of(optimizer: Optimizer) -> Rule:
    """The rule of an optimiser.

    Raises:
        NotImplementedError: if there is none, naming the optimiser or the option.
    """
    rules: dict[type[Optimizer], Rule] = {
        Adam: AdamRule(),
        AdamW: AdamRule(),
        SGD: SgdRule(),
        Adagrad: AdagradRule(),
    }
    kind = type(optimizer)  # one derived from these may do something else
    if kind not in rules:
        raise NotImplementedError(f"optimizer {kind.__name__} has no compiled form")
    for option in rules[kind].unknown:
        if any(group.get(option) for group in optimizer.param_groups):
            raise NotImplementedError(f"optimizer {kind.__name__} has no compiled form with {option}")
    return rules[kind]
