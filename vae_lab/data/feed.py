"""Batches of data that are already in memory, on their device: no workers, no collating, one gather for many."""

import math
from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vae_lab.data.preprocessing import Preprocessing
from vae_lab.data.sampling import Sampling
from vae_lab.interfaces import ROOM, Batch, Block
from vae_lab.seeds import generator


@final
class Indices:
    """Which data make up the batches of an epoch: 0 .. n - 1 in order, or, given a `sampling`, its draw of
    (seed, epoch)."""

    def __init__(
        self, n: int, batch_size: int, device: torch.device, sampling: Sampling | None = None, seed: int = 0
    ) -> None:
        self.n, self.batch_size, self.device = n, batch_size, device
        self.sampling, self.seed = sampling, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def order(self) -> Int[Tensor, " n"]:
        """The indices of the epoch, batch after batch."""
        if self.sampling is None:
            return torch.arange(self.n, device=self.device)
        # Drawn on the CPU whatever the device, so that every device visits the same data.
        return self.sampling.order(self.n, generator("cpu", self.seed, "order", self.epoch)).to(self.device)


@final
class Redraw:
    """A preprocessing's fresh draw for one batch. It depends on (seed, epoch, step) alone, not on the draws before."""

    def __init__(self, preprocessing: Preprocessing, levels: int | None, seed: int) -> None:
        self.preprocessing, self.levels, self.seed = preprocessing, levels, seed

    def __call__(self, pixels: Shaped[Tensor, "B *shape"], epoch: int, step: int) -> Float[Tensor, "B *shape"]:
        return self.preprocessing(pixels, self.levels, generator(pixels.device, self.seed, "pixels", epoch, step))


@final
class Feed:
    """The batches of one epoch, in the order of `sampler`: the global batch, the same in every process.

    `rows`: all data, as the model sees them, or, given `redraw`, with the pixels from which each batch is drawn afresh.
    A feed remembers how far it got, so that a run which stopped in mid-epoch goes on with the very next batch.
    """

    def __init__(self, rows: Batch, sampler: Indices, redraw: Redraw | None = None) -> None:
        self.rows, self.sampler, self.redraw = rows, sampler, redraw
        self.batch_sampler = None  # Lightning looks for one beside a sampler
        self.state = {"epoch": 0, "served": 0}
        self.resumed = False

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been served."""
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next pass go on where that state was taken, if it is over the same epoch."""
        self.state = dict(state_dict)
        self.resumed = True

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for block in self.blocks(1):
            yield from block

    def blocks(self, size: int) -> Iterator[Block]:
        """The same, `size` batches at a time, and the rest at the end."""
        # This runs when the first batch is asked for: Lightning sets the epoch between `iter` and that.
        epoch, B = self.sampler.epoch, self.sampler.batch_size
        served = self.state["served"] if self.resumed and self.state["epoch"] == epoch else 0
        self.resumed = False
        order = self.sampler.order()
        for step in range(served, len(self), size):
            block = self._block(order[step * B : (step + size) * B], epoch, step)
            self.state = {"epoch": epoch, "served": min(step + size, len(self))}
            yield block

    def example(self) -> Batch:
        """A batch of the size of all but an epoch's last. It is taken from no pass, and is no part of one."""
        n, size = self.sampler.n, self.sampler.batch_size
        return self._block(torch.arange(min(n, size), device=self.sampler.device), 0, 0).gathered()

    def _block(self, index: Int[Tensor, " _"], epoch: int, step: int) -> Block:
        """Some batches, of which the first is number `step`."""
        block = Block(self.rows, self.sampler.batch_size, index)
        if self.redraw is None:
            return block
        rows = block.gathered()
        parts = enumerate(rows.x.split(block.size), step)
        x = torch.cat([self.redraw(pixels, epoch, number) for number, pixels in parts])
        return Block(rows._replace(x=x), block.size)


@final
class Blocks:
    """A feed's batches by the block: what a training step of LitVAE takes.

    Args:
        size: the most batches in a block; of data of which so many would take more than ROOM there are fewer
    """

    def __init__(self, feed: Feed, size: int) -> None:
        self.feed, self.size = feed, min(size, max(1, ROOM // feed.example().x.nbytes))
        self.sampler = feed.sampler
        self.batch_sampler = None  # Lightning looks for one beside a sampler

    def state_dict(self) -> dict[str, int]:
        """The feed's."""
        return self.feed.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The feed's."""
        self.feed.load_state_dict(state_dict)

    def __len__(self) -> int:
        return math.ceil(len(self.feed) / self.size)

    def __iter__(self) -> Iterator[Block]:
        return self.feed.blocks(self.size)
