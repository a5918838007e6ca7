"""An optimiser step as a function of tensors alone: forward pass, gradient, clipping and update in one graph."""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from vae_lab.engine.rules import rule_of
from vae_lab.engine.update import hooked
from vae_lab.interfaces import Batch, Block, Terms
from vae_lab.objectives import Objective
from vae_lab.vae import VAE


class Work(NamedTuple):
    """What is trained, and how."""

    vae: VAE
    objective: Objective
    optimizer: Optimizer
    clip: float | None
    batch: Batch  # of the size of all others but an epoch's last; its values do not count
    steps: int  # of the whole run
    taken: int  # of them so far
    obstacle: str | None  # why its steps cannot be compiled
    tell: Callable[[str], None]  # says a line to the user


class Stepped(NamedTuple):
    """What is known of an optimiser step."""

    terms: Float[Tensor, "k B"]
    norm: Float[Tensor, ""] | None  # of the gradient, before it is clipped


class Made(NamedTuple):
    """What is known of some optimiser steps."""

    terms: Float[Tensor, "k _"]  # of the data of all
    size: int  # how many data a step has; the last may have fewer
    norms: Sequence[Tensor | None] | Float[Tensor, " K"]  # of each one's gradient

    def of(self, k: int) -> Stepped:
        """Of one of them, counted from 0."""
        return Stepped(self.terms[:, k * self.size : (k + 1) * self.size], self.norms[k])


Figures = list[tuple[float, ...]]
"""The numbers that a step takes from elsewhere than tensors, of each group of parameters; see `Rule.numbers`."""

Stepper = Callable[[Batch, Tensor, bool], Stepped]
"""Makes an optimiser step on a batch with noise [V, B, d]; the third: whether the gradient's norm is wanted."""

Advance = Callable[[], bool]
"""Counts an optimiser step; after it, the learning rates are those of the next. Whether a schedule has moved them, or
any other of the optimiser's options."""

Noises = Sequence[Tensor] | Tensor
"""The noise [V, B, d] of each batch of a block."""

Steps = Callable[[Block, Noises, Advance, Collection[int]], Made]
"""Makes the optimiser steps of a block, given its noise; calls the third once for each, when it has taken in
the learning rates; the last: at which of them, counted from 0, the gradient's norm is wanted."""


PLAIN = bool, int, float, str, type(None)
"""What an operation may take from Python, and would not see change."""


@final
class Scored(nn.Module):
    """A model with its objective."""

    def __init__(self, vae: VAE, objective: Objective) -> None:
        super().__init__()
        self.vae, self.objective = vae, objective

    def forward(self, batch: Batch, eps: Float[Tensor, "V B d"]) -> Terms:
        return self.objective(self.vae, batch, eps)


@final
class Step:
    """An optimiser step on tensors, and the tensors that it moves.

    `held` are the parameters, the buffers and the optimiser's state, by name; `given` is what each step is given
    besides: `numbers` of the optimiser's rule, the batch and the noise.

    Raises:
        NotImplementedError: for an optimiser that has no rule.
    """

    def __init__(self, work: Work) -> None:
        self.optimizer, self.clip = work.optimizer, work.clip
        self.model, self.rule = Scored(work.vae, work.objective), rule_of(work.optimizer)
        aside = ("params", "lr", "initial_lr")
        self.groups = [{k: v for k, v in g.items() if k not in aside} for g in self.optimizer.param_groups]
        names = {p: name for name, p in self.model.named_parameters()}
        self.trained = [[names[p] for p in group["params"] if p.requires_grad] for group in self.optimizer.param_groups]
        self.tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self.state = {
            name: self.begin(self.tensors[name], group)
            for group, members in zip(self.optimizer.param_groups, self.trained, strict=True)
            for name in members
        }
        states = {f"{name}/{key}": v for name, state in self.state.items() for key, v in state.items()}
        self.held = self.tensors | states
        x, (_, index, label) = work.batch.x, work.batch
        eps = x.new_empty(work.objective.samples, len(x), work.vae.d)
        given = {"numbers": self.numbers([self.figures(1)])[0], "x": x, "index": index, "label": label, "eps": eps}
        self.given = {name: v for name, v in given.items() if v is not None}
        self.parts = self.fixed()
        if hook := self.hook():
            raise NotImplementedError(hook)

    def hook(self) -> str | None:
        """What is called in each step, for whoever registered it, and would not be."""
        if hooked(self.optimizer):
            return "a hook of the optimiser looks inside a step"
        for name, part in self.model.named_modules():
            if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
                return f"a hook of {called(self.model, name)} looks inside a step"
        for name, p in self.model.named_parameters():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                return f"a hook of {name} looks inside a step"
        return None

    def begin(self, p: Tensor, group: dict) -> dict[str, Tensor]:
        """The optimiser's own state of a parameter, made where it has none yet, all on the parameter's device."""
        state = self.optimizer.state.get(p) or self.rule.begin(p, group)
        if state:
            self.optimizer.state[p] = state
        if "step" in state:
            state["step"] = state["step"].to(p.device)
        return {key: v for key, v in state.items() if isinstance(v, Tensor)}

    def numbers(self, figures: Sequence[Figures]) -> Float[Tensor, "K groups numbers"]:
        """The figures of some steps as a tensor."""
        like = next(iter(self.tensors.values()))
        return torch.tensor(figures, dtype=like.dtype, device=like.device)

    def figures(self, t: int) -> Figures:
        """What step number t takes from its number and from the learning rates of the moment."""
        return [self.rule.numbers(group, t) for group in self.optimizer.param_groups]

    def ahead(self, t: int, n: int, advance: Advance) -> tuple[list[Figures], str | None]:
        """The figures of the n steps after step t, each counted by `advance`; of fewer, and why, once something else
        than the learning rates has changed: a schedule may do so, and between blocks a callback."""
        figures, why = list[Figures](), self.changed()
        while why is None and len(figures) < n:
            figures.append(self.figures(t + len(figures) + 1))
            if advance():
                why = self.rescheduled()
        return figures, why

    def fixed(self) -> dict[tuple[str, str], object]:
        """What the graph takes from the model and the optimiser besides their tensors' values, by a part's name and an
        attribute's."""
        found = plain(self.model)
        for name, v in (*self.model.named_parameters(), *self.model.named_buffers()):
            found[name, "requires_grad"], found[name, "memory"] = v.requires_grad, v.data_ptr()
        for name, state in self.state.items():
            own = self.optimizer.state.get(self.tensors[name], {})
            found[name, "optimiser's state"] = all(own.get(key) is v for key, v in state.items())
        return found

    def changed(self) -> str | None:
        """What of that is no longer what it was, or of the optimiser's options."""
        if (now := self.fixed()) == self.parts:
            return self.hook() or self.rescheduled()
        name, attribute = next(key for key in self.parts | now if self.parts.get(key) != now.get(key))
        return f"{attribute} of {called(self.model, name)} has changed"

    def rescheduled(self) -> str | None:
        """What of the optimiser's options has changed."""
        for group, was in zip(self.optimizer.param_groups, self.groups, strict=True):
            if group | was != group:
                key = next(key for key, value in was.items() if group[key] != value)
                return f"the optimiser's {key} has changed"
        return None

    def __call__(self, *values: Tensor) -> tuple[Float[Tensor, "k B"], Float[Tensor, ""]]:
        """The step's terms and the gradient's norm, given the values of `held` and of `given`; `held` are moved."""
        value = dict(zip([*self.held, *self.given], values, strict=True))
        tensors = {name: value[name] for name in self.tensors}
        batch = Batch(value["x"], value["index"], value.get("label"))
        terms = functional_call(self.model, tensors, (batch, value["eps"]))
        if replaced := [name for name, tensor in tensors.items() if tensor is not value[name]]:
            raise NotImplementedError(f"the buffer {replaced[0]} is replaced in each step, not written into")
        weights = [name for members in self.trained for name in members]
        loss = terms.loss.sum() * (1 / len(batch.x))
        found = torch.autograd.grad(loss, [value[name] for name in weights], allow_unused=True)
        gradients = {name: g for name, g in zip(weights, found, strict=True) if g is not None}
        with torch.no_grad():
            norm = get_total_norm(list(gradients.values()), foreach=False)
            scale = None if self.clip is None else (self.clip / (norm + 1e-6)).clamp(max=1)
            for group, members, numbers in zip(self.groups, self.trained, value["numbers"], strict=True):
                for name in (name for name in members if name in gradients):
                    g = gradients[name] if scale is None else scale * gradients[name]
                    state = {key: value[f"{name}/{key}"] for key in self.state[name]}
                    self.rule.update(value[name], g, state, numbers, group)
            return torch.stack([term.detach() for term in terms]), norm

    def graph(self) -> GraphModule:
        """The step's operations. It is taken on a copy of the model, without values, and moves nothing.

        Raises:
            NotImplementedError: for a part of the model whose operations depend on values, or on anything in Python
                that changes from step to step, naming the part.
        """
        kept, self.model = self.model, copy.deepcopy(self.model)
        try:
            return traced(self, self.model, [*self.held.values(), *self.given.values()])
        finally:
            self.model = kept


def lagging(work: Work) -> None:
    """Raises NotImplementedError if a parameter was not moved in each of the steps so far, as one that was frozen: its
    next step is another than the others', and each step's number is taken to be the same for all."""
    states = work.optimizer.state
    if not any("step" in state for state in states.values()):
        return
    for group in work.optimizer.param_groups:
        for p in group["params"]:
            # one that the loss does not depend on stays at 0
            if p.requires_grad and (p not in states or float(states[p]["step"]) not in (0, work.taken)):
                raise NotImplementedError("a parameter was not moved in each step so far")


def traced(step: Callable[..., object], model: nn.Module, values: list[Tensor]) -> GraphModule:
    """The operations of a step of `model`, which this may change, on values like these, which it does not.

    Raises:
        NotImplementedError: as `Step.graph`.
    """
    before = plain(model)
    try:
        # every operation is seen as it happens, so that nothing in Python has to be understood by a compiler
        found = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
    except NotImplementedError:
        raise
    except Exception as error:
        where, words = culprit(error, model), " ".join(str(error).split())
        raise NotImplementedError(f"{where}: {type(error).__name__}: {words[:200]}") from error
    if changed := [key for key, v in plain(model).items() if before.get(key, v) != v]:
        name, attribute = changed[0]
        raise NotImplementedError(f"{called(model, name)} changes its attribute {attribute} from step to step")
    return found


def plain(model: nn.Module) -> dict[tuple[str, str], object]:
    """The attributes of a model's parts that are plain values, by the name of the part and their own."""
    return {
        (name, key): value
        for name, part in model.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, PLAIN)
    }


def called(model: nn.Module, name: str) -> str:
    """A part, or a parameter, as a user knows it."""
    part = dict(model.named_modules()).get(name)
    return name if part is None else f"{name} ({type(part).__name__})"


def culprit(error: BaseException, model: nn.Module) -> str:
    """The part of the model, the innermost, that raised the error."""
    names, found = {part: name for name, part in model.named_modules()}, "the model"
    at = error.__traceback__
    while at is not None:
        part = at.tb_frame.f_locals.get("self")
        if isinstance(part, nn.Module) and names.get(part):
            found = f"{names[part]} ({type(part).__name__})"
        at = at.tb_next
    return found
