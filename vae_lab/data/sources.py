"""Where data come from: each source loads its pixels once and splits them, always in the same way."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from vae_lab.checks import wholes
from vae_lab.data import arrays, idx
from vae_lab.data.arrays import array_shape as array_shape

SPLIT_SEED = 0
"""The splits' own seed: whatever a run's seed, it is tested on the same data."""


class Pixels(NamedTuple):
    """N data as they are in the file, uint8 or float32, and their labels where the file has them."""

    x: Shaped[Tensor, "N *shape"]
    label: Int[Tensor, " N"] | None = None


class Splits(NamedTuple):
    """Three disjoint sets of data; `val` and `test` may be empty."""

    train: Pixels
    val: Pixels
    test: Pixels


class Source(ABC):
    """Data of one kind. Constructors raise ValueError on a wrong argument, `load` on a wrong file, naming it."""

    shape: tuple[int, ...]
    """One datum as the model sees it: any shape that has as many values as the file's."""

    levels: int | None
    """Pixels are whole numbers 0 .. levels - 1 (uint8); None: they are floats, used as they are."""

    @abstractmethod
    def load(self) -> Splits: ...


@final
class Digits(Source):
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels, with 17 levels. Needs no file."""

    def __init__(self, shape: Sequence[int], validation: int | float, test: int | float) -> None:
        self.shape = fitting(shape, (8, 8))
        self.levels = 17
        self.validation, self.test = share("validation", validation), share("test", test)

    def load(self) -> Splits:
        from sklearn.datasets import load_digits  # here, as it takes a second and few runs need it

        digits = load_digits()
        pixels = Pixels(torch.from_numpy(digits.images.astype(np.uint8)), torch.from_numpy(digits.target).long())
        return split(pixels, self.shape, self.validation, self.test)


@final
class FreyFace(Source):
    """1965 frames of one face, 28 x 20 pixels of 256 levels: `frey_face.npz` under `root`, in its array `images`."""

    def __init__(
        self, shape: Sequence[int], root: str | Path | None, validation: int | float, test: int | float
    ) -> None:
        if root is None:
            raise ValueError("root must be a folder that holds frey_face.npz: give data.root")
        self.shape = fitting(shape, (28, 20))
        self.levels = 256
        self.root = Path(root).expanduser()
        self.validation, self.test = share("validation", validation), share("test", test)

    def load(self) -> Splits:
        path = self.root / "frey_face.npz"
        if not path.is_file():
            raise ValueError(f"there is no {path}; point data.root at a folder that holds frey_face.npz")
        images = arrays.read(path, "images")
        if images.dtype != np.uint8 or images.shape[1:] != (28, 20):
            raise ValueError(
                f"images of {path} must be uint8 [N, 28, 20], got {images.dtype} {list(images.shape)}; replace the file"
            )
        return split(Pixels(torch.from_numpy(images)), self.shape, self.validation, self.test)


@final
class Mnist(Source):
    """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels, 256 levels; `validation` is taken from the 60,000.

    `root`: a folder with the four files; null: they are downloaded from one of `mirrors`, once, into `cache`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        validation: int | float,
        root: str | Path | None,
        cache: str | Path | None,
        mirrors: Sequence[str],
    ) -> None:
        self.shape = fitting(shape, (28, 28))
        self.levels = 256
        self.validation = share("validation", validation)
        self.files = idx.Files(idx.MNIST, root, cache, mirrors)

    def load(self) -> Splits:
        return split_idx(self.files, self.shape, self.validation)


@final
class FashionMnist(Source):
    """Fashion-MNIST: pictures of clothes; in all else, and in its arguments, the same as `Mnist`."""

    def __init__(
        self,
        shape: Sequence[int],
        validation: int | float,
        root: str | Path | None,
        cache: str | Path | None,
        mirrors: Sequence[str],
    ) -> None:
        self.shape = fitting(shape, (28, 28))
        self.levels = 256
        self.validation = share("validation", validation)
        self.files = idx.Files(idx.FASHION_MNIST, root, cache, mirrors)

    def load(self) -> Splits:
        return split_idx(self.files, self.shape, self.validation)


@final
class Arrays(Source):
    """A `.npy` or `.npz` file of one's own: `root` is the file, which holds N data [N, ...], uint8 or floats.

    [N, D]: vectors; [N, H, W]: images; [N, H, W, C] or [N, C, H, W]: images with C channels. In an `.npz`, `key` null
    means its only array, or x, images or data; `label_key` null means y, labels or label, where one of these holds
    N whole numbers.
    """

    def __init__(
        self,
        root: str | Path,
        shape: Sequence[int],
        key: str | None,
        label_key: str | None,
        validation: int | float,
        test: int | float,
    ) -> None:
        self.path = Path(root).expanduser()
        self.key = arrays.pick(self.path, key)
        head = arrays.header(self.path, self.key)
        if head.dtype != np.uint8 and head.dtype.kind != "f":
            raise ValueError(f"root must be a file of uint8 or float values; those of {self.path} are {head.dtype}")
        self.shape = fitting(shape, arrays.datum_shape(self.path, head.shape))
        self.levels = 256 if head.dtype == np.uint8 else None
        self.label_key = arrays.pick_label(self.path, label_key, head.shape[0])
        self.validation, self.test = share("validation", validation), share("test", test)

    def load(self) -> Splits:
        array = arrays.channels_first(arrays.read(self.path, self.key))
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            x = torch.from_numpy(np.ascontiguousarray(array, np.uint8 if self.levels else np.float32))
        if x.is_floating_point() and not x.isfinite().all():
            raise ValueError(f"{self.path} holds values that are not finite float32 numbers; remove or replace them")
        label = None
        if self.label_key is not None:
            label = torch.from_numpy(arrays.read(self.path, self.label_key).astype(np.int64))
        return split(Pixels(x, label), self.shape, self.validation, self.test)


def fitting(shape: Sequence[int], datum: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` as a tuple; ValueError unless it has as many values as `datum`, the shape of one datum in the file."""
    wanted = tuple(wholes("shape", shape))
    if math.prod(wanted) != math.prod(datum):
        raise ValueError(
            f"shape must have {math.prod(datum)} values, as one datum of the data has ({list(datum)}), "
            f"got {list(wanted)}, which has {math.prod(wanted)}"
        )
    return wanted


def share(name: str, value: int | float) -> int | float:
    """`value` if it is a count >= 0 or a fraction in [0, 1) of the data; raises ValueError otherwise."""
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not count and not (isinstance(value, float) and 0 <= value < 1):
        raise ValueError(f"{name} must be a count >= 0 or a fraction in [0, 1), got {value!r}")
    return value


def split(pixels: Pixels, shape: tuple[int, ...], validation: int | float, test: int | float) -> Splits:
    """`pixels`, each in `shape`, dealt out at random in a fixed order; counts, or fractions of all, as asked for.

    The test set comes first in that order, so that it does not change with `validation`.
    """
    n = len(pixels.x)
    n_test, n_val = (part if isinstance(part, int) else int(part * n) for part in (test, validation))
    if n_test + n_val >= n:
        asked = f"validation={validation} and test={test} take {n_val} + {n_test}"
        raise ValueError(f"validation must leave data to train on: {asked} of {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    in_test, in_val, in_train = order.split([n_test, n_val, n - n_test - n_val])

    def part(index: Tensor) -> Pixels:
        x = pixels.x.reshape(n, *shape)[index]
        return Pixels(x, None if pixels.label is None else pixels.label[index])

    return Splits(part(in_train), part(in_val), part(in_test))


def split_idx(files: idx.Files, shape: tuple[int, ...], validation: int | float) -> Splits:
    """The files' own test set, and a split of their training set."""
    train, test = (
        Pixels(torch.from_numpy(files.array(images)), torch.from_numpy(files.array(labels)).long())
        for images, labels in ((idx.TRAIN_IMAGES, idx.TRAIN_LABELS), (idx.TEST_IMAGES, idx.TEST_LABELS))
    )
    own_test = Pixels(test.x.reshape(-1, *shape), test.label)
    return split(train, shape, validation, test=0)._replace(test=own_test)
