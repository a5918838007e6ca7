"""An optimiser step of several models at once: their tensors are stacked, and `vmap` runs the step over the stack."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.fx import GraphModule

from vae_lab.engine.differences import values, varied, windows
from vae_lab.engine.step import Figures, Noises, Step, Work, traced
from vae_lab.interfaces import Batch, Block

ROOM = 2**28
"""The most bytes that is given to the steps that are made at once, if it is not one."""

CACHED = 2**18
"""The most bytes of data that are gathered at once on a CPU, if they are not one step's."""

SAME = 1e-9
"""How far, relative to its size, a term that is computed in the stack may be from the model's own, both in float64:
far above what rounding does, far below what another formula would."""


class Asked(NamedTuple):
    """The optimiser steps of a block that a model wants to make."""

    block: Block
    eps: Noises
    figures: Sequence[Figures]  # of each step


@final
class Stack:
    """Models that differ in numbers alone, and the step that moves them all.

    They may differ in the values of their tensors, in floats of their parts (`beta`), in their learning rates, and in d
    where a latent dimension without weights and without noise does nothing: then all are padded with zeros to the
    greatest d, and the padding stays zero. What each batch lacks to the common size is filled up and weighs nothing.
    Whether all that is so is tried, not presumed.

    Raises:
        NotImplementedError: for models that cannot be stacked, saying why.
    """

    def __init__(self, works: Sequence[Work]) -> None:
        self.steps = [Step(work) for work in works]
        self.ds = [work.vae.d for work in works]
        widest = self.ds.index(max(self.ds))
        first, work = self.steps[widest], works[widest]
        self.model, self.rule, self.groups, self.trained = first.model, first.rule, first.groups, first.trained
        self.tensors, self.state, self.clip = first.tensors, first.state, first.clip
        self.weights = [name for members in self.trained for name in members]
        self.reached = set[str]()  # those that the loss depends on; the optimiser leaves the others, decay and all
        for step in self.steps:
            if step.groups != self.groups or step.trained != self.trained or step.clip != self.clip:
                raise NotImplementedError("their optimisers differ in more than the learning rate")
            if step.held.keys() != first.held.keys():
                raise NotImplementedError("they have different parameters")
        self.varied = varied([step.model for step in self.steps], self.ds)
        self.batch, self.samples = work.batch, work.objective.samples
        if any(other.objective.samples != self.samples for other in works):  # V may be said by way of d
            raise NotImplementedError("they differ in the number of samples")
        if any(other.batch.x.shape != self.batch.x.shape for other in works):
            raise NotImplementedError("they differ in the size of a batch")
        like = self.batch.x
        self.held = {name: like.new_zeros((len(works), *v.shape), dtype=v.dtype) for name, v in first.held.items()}
        # where the models' own tensors lie in the stack: parameters and buffers, and what their optimisers have
        parted = list(self.tensors), [name for name in self.held if name not in self.tensors]
        self.windows, self.moments = ([self.sides(i, names) for i in range(len(works))] for names in parted)
        self.versions: list[list[int]] = [[] for _ in works]  # of the moments, when both were the same
        self.push(range(len(works)))
        self.blank(1, 1)
        self.most = max(1, ROOM // sum(v.nbytes for v in self.room.values()))  # steps at once
        self.at_once = max(1, CACHED // self.room["x"].nbytes) if like.device.type == "cpu" else self.most
        self.check(works)

    # --- between the models' own tensors and the stack

    def sides(self, model: int, names: Collection[str]) -> tuple[list[Tensor], list[Tensor]]:
        """A model's own tensors of these names, and their parts of the stack."""
        held, d = self.steps[model].held, self.ds[model]
        pairs = [pair for n in names for pair in windows(held[n].detach(), self.held[n][model], d, max(self.ds), n)]
        return [own for own, _ in pairs], [stacked for _, stacked in pairs]

    def push(self, models: Sequence[int]) -> None:
        """Takes the own tensors of the models that are numbered into the stack: a callback may have written into them,
        into parameters and buffers also by ways that leave no trace (`.data`)."""
        written = [i for i in models if self.marks(i) != self.versions[i]]
        own, stacked = both([*(self.windows[i] for i in models), *(self.moments[i] for i in written)])
        torch._foreach_copy_(stacked, own)
        for i in written:
            self.versions[i] = self.marks(i)

    def pull(self, models: Sequence[int]) -> None:
        """Gives the models that are numbered their tensors from the stack."""
        own, stacked = both([side for i in models for side in (self.windows[i], self.moments[i])])
        torch._foreach_copy_(own, stacked)
        for i in models:
            self.versions[i] = self.marks(i)

    def marks(self, model: int) -> list[int]:
        """Those of a model's moments that tell whether somebody has written into one."""
        own, _ = self.moments[model]
        return [v._version for v in own]

    # --- what steps are given

    def blank(self, K: int, C: int) -> None:
        """Makes room for what K steps are given besides `held`, and for the data of C at a time: in `room`, for all of
        them in turn, and in `given`, the first one's; `turns` has the views of each."""
        N, (x, index, label), B = len(self.steps), self.batch, len(self.batch.x)
        numbers = self.steps[0].numbers([self.steps[0].figures(1)])
        room = {
            "numbers": numbers.new_zeros(K, N, *numbers.shape[1:]),
            "x": x.new_zeros(C, N, *x.shape),
            "index": index.new_zeros(C, N, B),
            "label": None if label is None else label.new_zeros(C, N, B),
            "eps": x.new_zeros(K, N, self.samples, B, max(self.ds)),
            "share": x.new_zeros(K, N, B),
        }
        self.room = {name: v for name, v in room.items() if v is not None}
        self.data = {name: self.room[name] for name in Batch._fields if name in self.room}
        self.chosen = index.new_zeros(K, N, B)
        constant = {f"varied{j}": x.new_tensor(values) for j, values in enumerate(self.varied.values())}
        self.turns = [[*(v[k % len(v)] for v in self.room.values()), *constant.values()] for k in range(K)]
        self.given = dict(zip([*self.room, *constant], self.turns[0], strict=True))

    def fill(self, asked: Mapping[int, Asked]) -> Iterator[list[Tensor]]:
        """Takes in what the models ask for, by their numbers, each for as many steps; what each step is given, in the
        order of `given`, until the next is asked for. A model that does not ask is given anything."""
        K, B = len(next(iter(asked.values())).eps), len(self.batch.x)
        rows = common([block for block, _, _ in asked.values()])
        C = K if rows is None else min(K, self.at_once)
        if len(self.turns) < K or len(self.data["x"]) < C:
            self.blank(K, C)
        room = self.room
        figures = next(iter(asked.values())).figures
        numbers = [asked[i].figures if i in asked else figures for i in range(len(self.steps))]
        room["numbers"][:K].copy_(torch.tensor(numbers, dtype=torch.float64).transpose(0, 1))
        for i, (block, eps, _) in asked.items():
            full, b = divmod(block.n, B)
            share, noise = room["share"][:, i], room["eps"][:, i, ..., : self.ds[i]]
            # the loss is a mean over the batch; a datum that only fills it up has no share in that
            share[:full] = 1 / B
            if full:
                noise[:full] = eps[:full] if isinstance(eps, Tensor) else torch.stack(list(eps[:full]))
            if b:
                share[full] = 0
                share[full, :b] = 1 / b
                noise[full, :, :b] = eps[full]
            if rows is None:
                own = block.gathered()
                for name, to in self.data.items():
                    put(getattr(own, name), to[:, i])
            else:
                assert block.chosen is not None
                put(block.chosen, self.chosen[:, i])
        yield from self.turns[:K] if rows is None else self.gathered(rows, K)

    def gathered(self, rows: Batch, K: int) -> Iterator[list[Tensor]]:
        """What each step is given, whose data are gathered on the way from rows that are all models': so few at once
        that they are still in the cache when they are used."""
        C = len(self.data["x"])
        for k in range(0, K, C):
            chosen = self.chosen[k : min(k + C, K)]
            for name, to in self.data.items():
                torch.index_select(getattr(rows, name), 0, chosen.flatten(), out=to[: len(chosen)].flatten(0, 2))
            yield from self.turns[k : k + len(chosen)]

    # --- the step

    def loss(
        self, weights: dict[str, Tensor], rest: dict[str, Tensor], given: dict[str, Tensor], numbers: list[Tensor]
    ) -> tuple[Float[Tensor, ""], tuple[Float[Tensor, "k B"], dict[str, Tensor]]]:
        """One model's loss; its terms, and its buffers after the step."""
        tensors = weights | {name: v.clone() for name, v in rest.items()}  # a buffer may be written into, or replaced
        batch = Batch(given["x"], given["index"], given.get("label"))
        with values(self.model, dict(zip(self.varied, numbers, strict=True))):
            terms = functional_call(self.model, tensors, (batch, given["eps"]))
        share = given["share"]
        loss = torch.where(share > 0, terms.loss * share, 0).sum()
        return loss, (torch.stack(list(terms)), {name: tensors[name] for name in rest})

    def gradients(self, value: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Each model's gradient, terms [N, k, B] and buffers, given the values of `held` and `given`."""
        weights = {name: value[name] for name in self.weights}
        rest = {name: value[name] for name in self.tensors if name not in weights}
        given = {name: value[name] for name in ("x", "index", "label", "eps", "share") if name in value}
        numbers = [value[f"varied{j}"] for j in range(len(self.varied))]
        found, (terms, buffers) = vmap(grad(self.loss, has_aux=True))(weights, rest, given, numbers)
        return found, terms, buffers

    def __call__(self, *flat: Tensor) -> tuple[Float[Tensor, "N k B"], Float[Tensor, " N"]]:
        """Each model's terms and its gradient's norm, given the values of `held` and `given`; `held` are moved."""
        value = dict(zip([*self.held, *self.given], flat, strict=True))
        found, terms, buffers = self.gradients(value)
        with torch.no_grad():
            for name, v in buffers.items():
                value[name].copy_(v)
            norm = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in found.values()]).norm(dim=0)  # [N]
            scale = None if self.clip is None else (self.clip / (norm + 1e-6)).clamp(max=1)
            for j, (group, members) in enumerate(zip(self.groups, self.trained, strict=True)):
                numbers = value["numbers"][:, j].T  # [numbers, N]
                for name in (name for name in members if name in self.reached):
                    g = found[name]
                    state = {key: value[f"{name}/{key}"] for key in self.state[name]}
                    each = (-1, *[1] * (g.dim() - 1))
                    g = g if scale is None else scale.view(each) * g
                    self.rule.update(value[name], g, state, numbers.reshape(len(numbers), *each), group)
        return terms.detach(), norm

    def graph(self) -> GraphModule:
        """The step's operations, as of `Step.graph`."""
        kept, self.model = self.model, copy.deepcopy(self.model)
        try:
            return traced(self, self.model, [*self.held.values(), *self.given.values()])
        finally:
            self.model = kept

    # --- whether it is right

    def check(self, works: Sequence[Work]) -> None:
        """Raises NotImplementedError if a model's terms are not its own in the stack, or if padding does something."""
        random = torch.Generator().manual_seed(0)
        kept, self.model = self.model, copy.deepcopy(self.model).double()
        B = len(self.batch.x)
        try:
            asked, wanted = dict[int, Asked](), list[tuple[Tensor, dict[str, Tensor]]]()
            for i, (step, work) in enumerate(zip(self.steps, works, strict=True)):
                x, index, label = work.batch
                b = max(1, B - i % 2 * (B // 2))  # every other one has half a batch
                batch = Batch(x[:b], index[:b], None if label is None else label[:b])
                eps = torch.randn(self.samples, b, work.vae.d, generator=random, dtype=x.dtype).to(x.device)
                asked[i] = Asked(Block(batch, B), [eps], [step.figures(1)])
                alone = copy.deepcopy(step.model).double()
                found = alone(batch._replace(x=batch.x.double()), eps.double())
                weights = [alone.get_parameter(name) for name in self.weights]
                g = torch.autograd.grad(found.loss.sum(), weights, allow_unused=True)
                reached = {name for name, v in zip(self.weights, g, strict=True) if v is not None}
                if reached != (self.reached if i else reached):
                    raise NotImplementedError("they have different parameters")
                self.reached = reached
                wanted.append((torch.stack([term.detach() for term in found]), dict(alone.named_buffers())))
            next(self.fill(asked))
            try:
                exact = {k: v.double() if v.is_floating_point() else v for k, v in (self.held | self.given).items()}
                gradients, terms, buffers = self.gradients(exact)
            except NotImplementedError:
                raise
            except Exception as error:
                raise NotImplementedError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
            for i, (own, after) in enumerate(wanted):
                pairs = [(terms[i, :, : own.shape[1]], own)]
                pairs += [(buffers[name][i], v) for name, v in after.items() if buffers[name][i].shape == v.shape]
                if not all(torch.allclose(a, b.to(a.dtype), rtol=SAME, atol=SAME, equal_nan=True) for a, b in pairs):
                    raise NotImplementedError("a model in the stack is not the same as alone")
            for name, gradient in gradients.items():
                outside = torch.ones_like(gradient)
                for i, (step, d) in enumerate(zip(self.steps, self.ds, strict=True)):
                    for _, inside in windows(step.held[name], outside[i], d, max(self.ds), name):
                        inside.zero_()
                if bool((gradient * outside).any()):
                    raise NotImplementedError("a latent dimension more would not be without effect")
        finally:
            self.model = kept
            self.blank(1, 1)


def common(blocks: Sequence[Block]) -> Batch | None:
    """The data that all blocks are yet to be gathered from, if these are the same."""
    rows = blocks[0].rows
    return rows if all(block.chosen is not None and block.rows is rows for block in blocks) else None


def put(v: Shaped[Tensor, "n *shape"], to: Shaped[Tensor, "K B *shape"]) -> None:
    """Writes what batches have, one behind another, into them; the last may have less than its size."""
    full, rest = divmod(len(v), to.shape[1])
    to[:full] = v[: len(v) - rest].unflatten(0, (full, to.shape[1]))
    if rest:
        to[full, :rest] = v[len(v) - rest :]


def both(sides: Sequence[tuple[list[Tensor], list[Tensor]]]) -> tuple[list[Tensor], list[Tensor]]:
    """All sides as one."""
    own, stacked = zip(*sides, strict=True)
    return [*chain.from_iterable(own)], [*chain.from_iterable(stacked)]
