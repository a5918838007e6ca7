"""How an epoch's batches are formed."""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from vae_lab.checks import whole


class Sampling(ABC):
    """`batch_size` data in a step of training (the last one of an epoch may have fewer), `eval_batch_size` elsewhere.

    The trainer makes `block` steps of training in one call, as its hooks cost as much as a small step does. Numbers do
    not depend on it; callbacks are called, and a run can stop, once a block.
    """

    batch_size: int
    eval_batch_size: int
    block: int

    @abstractmethod
    def order(self, n: int, generator: Generator) -> Int[Tensor, " n"]:
        """The n indices, each in 0 .. n - 1, that one epoch visits."""


@final
class Shuffled(Sampling):
    """Without replacement: every datum once in an epoch, in a random order."""

    def __init__(self, batch_size: int, eval_batch_size: int, block: int) -> None:
        self.batch_size = whole("batch_size", batch_size)
        self.eval_batch_size = whole("eval_batch_size", eval_batch_size)
        self.block = whole("block", block)

    def order(self, n: int, generator: Generator) -> Int[Tensor, " n"]:
        return torch.randperm(n, generator=generator)


@final
class WithReplacement(Sampling):
    """i ~ U(1, ..., n) for every place, as in (18): an epoch is n draws, and leaves about n / e data untouched."""

    def __init__(self, batch_size: int, eval_batch_size: int, block: int) -> None:
        self.batch_size = whole("batch_size", batch_size)
        self.eval_batch_size = whole("eval_batch_size", eval_batch_size)
        self.block = whole("block", block)

    def order(self, n: int, generator: Generator) -> Int[Tensor, " n"]:
        return torch.randint(n, (n,), generator=generator)
