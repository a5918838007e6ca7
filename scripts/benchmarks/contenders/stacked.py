"""The compiled steps of vae_lab's packed models alone, without Lightning, records and checkpoints; or parts of them."""

from pathlib import Path
from time import perf_counter
from typing import final

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.fx import GraphModule

import vae_lab
from benchmarks.contenders import Contender, Job, Weights
from benchmarks.contenders.bare import arrays, wait
from benchmarks.contenders.shipped import scored
from benchmarks.workloads import read
from vae_lab import hints
from vae_lab.cli import register_resolvers
from vae_lab.commands import machine, training
from vae_lab.commands.common import build
from vae_lab.engine.engines import Call, Replay, cache_folder, inductor
from vae_lab.engine.products import factors, quickest
from vae_lab.engine.stack import Asked, Stack
from vae_lab.engine.step import Work, traced
from vae_lab.interfaces import Batch, Block

STEP, GRADIENT = "step", "gradient"  # kinds: the data and the noise stay as they are; and so do the weights


@final
class Stacked(Contender):
    """Models with orders and noise of their own."""

    about = f"vae_lab {vae_lab.__version__}"

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        machine.tune()
        register_resolvers()
        self.job = job
        with initialize_config_dir(str(hints.CONF), version_base="1.3"):
            self.cfg = compose("train", [*job.work.shape(), "data=arrays", f"data.root={job.file}", "paths.run=."])
        self.x = torch.from_numpy(read(Path(job.file))).to(job.device)
        self.call: Call | None = None  # compiled once

    def stack(self) -> Stack:
        """New models."""
        size, works = self.job.work.batch, []
        for _ in range(self.job.models):
            vae = training.build_vae(self.cfg).to(self.job.device)
            objective, optimizer = build(self.cfg, "objective"), build(self.cfg, "optimizer")(vae.parameters())
            batch = Batch(self.x[:size].unflatten(1, vae.shape), torch.arange(size, device=self.x.device), None)
            works.append(Work(vae, objective, optimizer, None, batch, self.job.work.steps, 0, None, print))
        found = Stack(works)
        eps = torch.zeros(works[0].objective.samples, size, works[0].vae.d, device=self.x.device)
        # what no step changes: which data are there
        block, figures = Block(works[0].batch, size), [found.steps[0].figures(1)]
        next(found.fill(dict.fromkeys(range(len(works)), Asked(block, [eps], figures))))
        return found

    def train(self) -> tuple[float, Weights]:
        work, stack, models = self.job.work, self.stack(), self.job.models
        held, given = list(stack.held.values()), stack.given
        if self.call is None:
            graph = gradients(stack) if self.job.kind == GRADIENT else stack.graph()
            self.library = quickest(factors(graph))
            with cache_folder(None), torch.no_grad():
                self.call = inductor(graph, [*held, *given.values()])
        call = Replay(self.call, held) if self.job.device == "cuda" else self.call
        shape = models, work.steps, work.batch
        order = torch.stack([torch.randperm(len(self.x), device=self.x.device) for _ in range(models)])
        order = order[:, : work.steps * work.batch].reshape(shape)

        def step(t: int) -> None:
            if not self.job.kind:
                index = order[:, t]
                torch.index_select(self.x, 0, index.flatten(), out=given["x"].flatten(0, 1).flatten(1))
                given["index"].copy_(index)
                given["eps"].normal_()
                given["numbers"].copy_(stack.steps[0].numbers([stack.steps[0].figures(t + 1)])[0])
            call(*held, *given.values())

        with torch.no_grad(), self.library:
            for _ in range(2):  # loads a GPU's kernels, and records their graph
                step(0)
            wait(self.job.device)
            start = perf_counter()
            for t in range(work.steps):
                step(t)
            wait(self.job.device)
            seconds = perf_counter() - start
        stack.pull(range(models))
        return seconds, [] if self.job.kind else arrays(stack.steps[-1].model)

    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        return scored(self.cfg, weights, x, eps)


def gradients(stack: Stack) -> GraphModule:
    """The operations that come before the weights are moved."""

    def found(*flat: Tensor) -> list[Tensor]:
        value = dict(zip([*stack.held, *stack.given], flat, strict=True))
        each, terms, _ = stack.gradients(value)
        return [*each.values(), terms]

    return traced(found, stack.model, [*stack.held.values(), *stack.given.values()])


def make(job: Job) -> Contender:
    """The contender of a job."""
    return Stacked(job)
