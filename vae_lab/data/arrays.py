"""Arrays in `.npy` and `.npz` files: which one is meant, and how one datum lies in it.

Needs NumPy alone, so that a configuration learns a shape without waiting for torch.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Shaped

KEYS = ("x", "images", "data")
LABEL_KEYS = ("y", "labels", "label")
CHANNELS = (1, 3, 4)


class Header(NamedTuple):
    """What a file says of an array before its values."""

    shape: tuple[int, ...]
    dtype: np.dtype


def array_shape(root: str | Path, key: str | None = None) -> list[int]:
    """The shape of one datum in the file `root`, as the model sees it; reads the header, no data.

    [N, D] -> [D]; [N, H, W] -> [1, H, W]; [N, H, W, C] -> [C, H, W]; anything else as it is. Raises ValueError,
    naming the file, when there is none, or when it is not an array of data.
    """
    path = Path(root).expanduser()
    return list(datum_shape(path, header(path, pick(path, key)).shape))


def names(path: Path) -> list[str]:
    """The names of the arrays in an `.npz`; none for an `.npy`, whose array has no name."""
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"root must be a .npy or .npz file, got {path}")
    if not path.is_file():
        raise ValueError(f"root must be a .npy or .npz file: there is no file {path}")
    if path.suffix == ".npy":
        return []
    with _naming(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def pick(path: Path, key: str | None) -> str | None:
    """The name of the array that holds the data; None in an `.npy`."""
    held = names(path)
    if key is not None:
        return _held(path, "key", key, held)
    if path.suffix == ".npy":
        return None
    if len(held) == 1:
        return held[0]
    for candidate in KEYS:
        if candidate in held:
            return candidate
    raise ValueError(f"key must name the array of {path} that holds the data: one of {', '.join(held) or '(none)'}")


def pick_label(path: Path, label_key: str | None, n: int) -> str | None:
    """The name of the array that holds the labels; where none is given, that of `LABEL_KEYS` which holds n of them."""
    held = names(path)
    if label_key is not None:
        name = _held(path, "label_key", label_key, held)
        if not _are_labels(header(path, name), n):
            raise ValueError(
                f"label_key must name {n} whole numbers, one for each datum; {name!r} of {path} is not that"
            )
        return name
    return next((name for name in LABEL_KEYS if name in held and _are_labels(header(path, name), n)), None)


def header(path: Path, name: str | None) -> Header:
    """Shape and dtype of one array of a file."""
    with _opened(path, name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        return Header(shape, dtype)


def read(path: Path, name: str | None) -> Shaped[np.ndarray, "..."]:
    """One array of a file, whole."""
    with _opened(path, name) as stream:
        return np.load(stream, allow_pickle=False)


def datum_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one datum of an array of this shape, channels first."""
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{path} must hold an array [N, ...] of N data, got one of shape {list(shape)}")
    if len(shape) == 3:
        return (1, *shape[1:])
    return (shape[3], *shape[1:3]) if _channels_last(shape) else shape[1:]


def channels_first(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """`array` with the axes of its data in the order of `datum_shape`; a view."""
    return np.moveaxis(array, 3, 1) if _channels_last(array.shape) else array


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] in CHANNELS and shape[1] not in CHANNELS


def _are_labels(head: Header, n: int) -> bool:
    return head.shape == (n,) and head.dtype.kind in "iu"


def _held(path: Path, argument: str, name: str, held: list[str]) -> str:
    if name not in held:
        what = f"one of {', '.join(held)}, the arrays of {path}" if held else f"null, as {path} names no arrays"
        raise ValueError(f"{argument} must be {what}; got {name!r}")
    return name


@contextmanager
def _opened(path: Path, name: str | None) -> Iterator[IO[bytes]]:
    """The bytes of one array in the `.npy` format."""
    with _naming(path):
        if name is None:
            with path.open("rb") as stream:
                yield stream
        else:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
                yield stream


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file becomes one ValueError with its name."""
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a NumPy file of plain numbers ({error}); save it again") from error
