"""A source, its preprocessing and its sampling, as Lightning asks for them."""

import math
from typing import final

import pytorch_lightning as pl
import torch

from vae_lab.checks import one_of, whole
from vae_lab.data.feed import Blocks, Feed, Indices, Redraw
from vae_lab.data.preprocessing import Preprocessing, prepared
from vae_lab.data.sampling import Sampling
from vae_lab.data.sources import Pixels, Source, Splits
from vae_lab.interfaces import Batch


@final
class InMemory(pl.LightningDataModule):
    """All data in memory, on the trainer's device, or on the CPU where there is no trainer.

    `seed`, the run's, decides the order of training and the fresh draws of its pixels; never the splits, nor the
    values of validation and test data.
    """

    def __init__(self, source: Source, preprocessing: Preprocessing, sampling: Sampling, seed: int) -> None:
        super().__init__()
        self.source, self.preprocessing, self.sampling = source, preprocessing, sampling
        self.seed = whole("seed", seed, least=0)
        self.splits: Splits | None = None
        self.prepared: dict[tuple[str, bool, torch.device], Batch] = {}

    def share(self, other: "InMemory") -> None:
        """Has the same data as `other`, whose source and preprocessing are equal, in the same memory."""
        other.setup()
        self.splits, self.prepared = other.splits, other.prepared

    def setup(self, stage: str | None = None) -> None:
        """Loads the data, once."""
        if self.splits is None:
            self.splits = self.source.load()

    @property
    def n(self) -> int:
        """Training data."""
        return len(self._split("train").x)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of training data in an epoch."""
        return math.ceil(self.n / self.sampling.batch_size)

    def train_dataloader(self) -> Blocks:
        """The batches of `train_feed`, in the sampling's blocks."""
        return Blocks(self.train_feed(), self.sampling.block)

    def train_feed(self) -> Feed:
        """Training data in the sampling's order; drawn afresh for each batch where the preprocessing says so."""
        sampler = Indices(self.n, self.sampling.batch_size, self._device(), self.sampling, self.seed)
        if not self.preprocessing.resample:
            return Feed(self._rows("train"), sampler)
        redraw = Redraw(self.preprocessing, self.source.levels, self.seed)
        return Feed(self._rows("train", raw=True), sampler, redraw)

    def val_dataloader(self) -> Feed | list[Feed]:
        """Validation data in order; nothing where there are none."""
        return self.feed("val") if len(self._split("val").x) else []

    def test_dataloader(self) -> Feed | list[Feed]:
        """Test data in order; nothing where there are none."""
        return self.feed("test") if len(self._split("test").x) else []

    def feed(self, split: str) -> Feed:
        """All data of "train", "val" or "test", in order and drawn once; ValueError for another name."""
        rows = self._rows(split)
        return Feed(rows, Indices(len(rows.x), self.sampling.eval_batch_size, self._device()))

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _split(self, split: str) -> Pixels:
        one_of("split", split, Splits._fields)
        self.setup()
        assert self.splits is not None
        return getattr(self.splits, split)

    def _rows(self, split: str, raw: bool = False) -> Batch:
        """All data of a split, made once; `raw`: x are their pixels."""
        device = self._device()
        key = split, raw, device
        if key not in self.prepared:
            pixels, label = self._split(split)
            x = pixels if raw else prepared(pixels, self.source.levels, self.preprocessing, split)
            label = None if label is None else label.to(device)
            self.prepared[key] = Batch(x.to(device), torch.arange(len(x), device=device), label)
        return self.prepared[key]
