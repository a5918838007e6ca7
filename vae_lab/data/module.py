"""A source, its preprocessing and its sampling, as Lightning asks for them."""

import math
from typing import final

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.checks import one_of, whole
from vae_lab.data.feed import Blocks, Feed, Indices, Redraw
from vae_lab.data.preprocessing import Preprocessing, prepared
from vae_lab.data.sampling import Sampling
from vae_lab.data.sources import Pixels, Source, Splits


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
        self.prepared: dict[tuple[str, torch.device], Tensor] = {}

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
        device, train = self._device(), self._split("train")
        sampler = Indices(len(train.x), self.sampling.batch_size, device, self.sampling, self.seed)
        label = None if train.label is None else train.label.to(device)
        if self.preprocessing.resample:
            redraw = Redraw(self.preprocessing, self.source.levels, self.seed)
            return Feed(train.x.to(device), label, sampler, redraw)
        return Feed(self._prepare("train"), label, sampler)

    def val_dataloader(self) -> Feed | list[Feed]:
        """Validation data in order; nothing where there are none."""
        return self.feed("val") if len(self._split("val").x) else []

    def test_dataloader(self) -> Feed | list[Feed]:
        """Test data in order; nothing where there are none."""
        return self.feed("test") if len(self._split("test").x) else []

    def feed(self, split: str) -> Feed:
        """All data of "train", "val" or "test", in order and drawn once; ValueError for another name."""
        device, pixels = self._device(), self._split(split)
        label = None if pixels.label is None else pixels.label.to(device)
        return Feed(self._prepare(split), label, Indices(len(pixels.x), self.sampling.eval_batch_size, device))

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _split(self, split: str) -> Pixels:
        one_of("split", split, Splits._fields)
        self.setup()
        assert self.splits is not None
        return getattr(self.splits, split)

    def _prepare(self, split: str) -> Float[Tensor, "N *shape"]:
        """x of a split, made once."""
        key = split, self._device()
        if key not in self.prepared:
            x = prepared(self._split(split).x, self.source.levels, self.preprocessing, split)
            self.prepared[key] = x.to(key[1])
        return self.prepared[key]
