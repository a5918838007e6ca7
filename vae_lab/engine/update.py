"""How an eager step moves the parameters by their gradients."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as of_all

Update = Callable[[], object]
"""Moves the parameters, and the optimiser's state."""


def update_of(optimizer: Optimizer) -> Update:
    """What `optimizer.step` does, bit for bit, as long as nothing but the options in its `param_groups` is changed."""
    if type(optimizer) not in (Adam, AdamW) or hooked(optimizer):  # one derived from these may do something else
        return optimizer.step
    ready = all(fused(group, optimizer.state) for group in optimizer.param_groups)
    return FusedAdam(optimizer) if ready else optimizer.step


def hooked(optimizer: Optimizer) -> bool:
    """Whether anything is called before or after an optimiser's step; where torch does not tell, something may be."""
    return any(
        getattr(optimizer, f"_optimizer_step_{hooks}", True) or getattr(of_all, f"_global_optimizer_{hooks}", True)
        for hooks in ("pre_hooks", "post_hooks")
    )


def fused(group: dict[str, Any], state: dict[Tensor, dict[str, Tensor]]) -> bool:
    """Whether all that the group's next step takes is one call of a kernel."""
    params = group["params"]
    alike = len({(p.device, p.dtype) for p in params}) == 1 and all(state.get(p) for p in params)
    return alike and bool(group["fused"]) and not group["amsgrad"] and not isinstance(group["lr"], Tensor)


@final
class FusedAdam:
    """Adam and AdamW by torch's fused kernel alone. What torch does around it, again in each step, takes a small model
    longer: it gathers, sorts and checks what is the same in all of them."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        keys = "exp_avg", "exp_avg_sq", "step"
        self.states = [[[optimizer.state[p][key] for p in g["params"]] for key in keys] for g in optimizer.param_groups]

    @torch.no_grad()
    def __call__(self) -> None:
        if any(p.grad is None for p in self.params):  # those stay where they are
            self.optimizer.step()
            return
        for group, (m, v, t) in zip(self.optimizer.param_groups, self.states, strict=True):
            decoupled = group.get("decoupled_weight_decay", isinstance(self.optimizer, AdamW))
            adam = torch._fused_adamw_ if decoupled else torch._fused_adam_
            params, (beta1, beta2) = group["params"], group["betas"]
            options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
            torch._foreach_add_(t, 1)
            adam(params, [p.grad for p in params], m, v, [], t, beta1=beta1, beta2=beta2, **options)
