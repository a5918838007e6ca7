"""IDX files, the format of MNIST and its kin: found in a folder or fetched once, and always verified."""

import gzip
import hashlib
import logging
import math
import os
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
from jaxtyping import UInt8

logger = logging.getLogger(__name__)

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

ROUNDS = 3  # how often the whole list of mirrors is tried
PAUSE = 1.0  # seconds between two rounds
TIMEOUT = 30.0  # seconds without an answer, or without another byte, that end an attempt


class Dataset(NamedTuple):
    """Four IDX files: the folders where people keep them, and the SHA-256 of each one's decompressed content."""

    name: str
    folders: tuple[str, ...]
    sha256: Mapping[str, str]


MNIST = Dataset(
    name="mnist",
    folders=("mnist", "MNIST/raw"),
    sha256={
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = Dataset(
    name="fashion-mnist",
    folders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
    sha256={
        TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)


class Files:
    """The files of one dataset: those under `root` where it is given, else those of the cache, fetched when missing.

    `cache` null: the user's own cache folder. `mirrors`: addresses to which a file's name and `.gz` are added.
    """

    def __init__(
        self, dataset: Dataset, root: str | Path | None, cache: str | Path | None, mirrors: Sequence[str]
    ) -> None:
        if isinstance(mirrors, str) or (root is None and not mirrors):
            raise ValueError(f"mirrors must be a list of addresses to download from, got {mirrors!r}")
        self.dataset = dataset
        self.root = None if root is None else Path(root).expanduser()
        self.cache = Path(pooch.os_cache("vae_lab") if cache is None else cache).expanduser() / dataset.name
        self.mirrors = [mirror.rstrip("/") for mirror in mirrors]

    def array(self, name: str) -> UInt8[np.ndarray, "..."]:
        """The values of the file `name`; ValueError, naming it, when it cannot be had or is not the right one."""
        digest = self.dataset.sha256[name]
        if self.root is not None:
            path = find(self.root, self.dataset, name)
            remedy = "replace it, or leave data.root empty to download it"
        else:
            path = self.cache / name
            remedy = "delete it and run again"
            if not path.exists():
                fetch(path, digest, self.mirrors)
        try:
            return parse(content(path), digest)
        except ValueError as error:
            raise ValueError(f"{path} {error}; {remedy}") from error


def find(root: Path, dataset: Dataset, name: str) -> Path:
    """The file `name`, gzipped or not, under either of its two spellings, in `root` or a folder of the dataset's."""
    for folder in ("", *dataset.folders):
        for spelling in (name, name.replace("-idx", ".idx")):
            for path in (root / folder / spelling, root / folder / f"{spelling}.gz"):
                if path.is_file():
                    return path
    raise ValueError(
        f"{name} (or {name}.gz) is not in {root}, nor in its {' or '.join(dataset.folders)}; "
        f"point data.root at a folder with {', '.join(dataset.sha256)}, or leave it empty to download them"
    )


def content(path: Path) -> bytes:
    """The bytes of a file, decompressed where its name ends in `.gz`; ValueError says what is wrong with it."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except EOFError as error:
        raise ValueError("is truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"is not a sound gzip file ({error})") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def parse(data: bytes, digest: str) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes; ValueError where header, size or SHA-256 are not as they must be."""
    # Header: two zero bytes, 8 for unsigned bytes, the number of axes, and each axis as a big-endian integer.
    start = 4 + 4 * data[3] if len(data) > 3 else 4
    if data[:3] != b"\0\0\x08" or len(data) < start:
        raise ValueError("is not an IDX file of bytes")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    if len(data) - start != math.prod(shape):
        raise ValueError(f"has {len(data) - start} values where its header says {math.prod(shape)}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("does not hold the right data (its SHA-256 differs)")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # a copy, as `data` is read-only


def fetch(path: Path, digest: str, mirrors: Sequence[str]) -> None:
    """Downloads `path.name` from the first mirror that has the right content, and puts it, decompressed, at `path`.

    A process works in a folder of its own beside `path` and moves the verified file in one step: `path` is whole or
    absent, whatever happens and however many processes fetch it at once. Raises ValueError when every mirror fails.
    """
    reasons: dict[str, str] = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            packed, plain = Path(folder, f"{path.name}.gz"), Path(folder, path.name)
            for attempt in range(ROUNDS):
                time.sleep(PAUSE if attempt else 0)
                for mirror in mirrors:
                    reason = _download(f"{mirror}/{packed.name}", packed) or _unpack(packed, digest, plain)
                    if reason is None:
                        os.replace(plain, path)
                        return
                    reasons[mirror] = reason
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error}); point data.cache at another folder") from error
    failed = "; ".join(f"{mirror}: {reason}" for mirror, reason in reasons.items())
    raise ValueError(
        f"{path.name} could not be downloaded ({failed}); get {path.name}.gz by other means and put it, unpacked, "
        f"into {path.parent}, or point data.root at a folder with all four files"
    )


def _download(url: str, to: Path) -> str | None:
    """None, or why it failed."""
    logger.info("downloading %s", url)
    # A bar on a terminal only: in a log it is noise.
    get = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16, timeout=TIMEOUT)
    try:
        get(url, str(to), None)
    except (OSError, ValueError) as error:  # requests' own errors are OSErrors, or ValueErrors for a bad address
        return str(error)
    return None


def _unpack(packed: Path, digest: str, plain: Path) -> str | None:
    """None, or what is wrong with the download."""
    try:
        data = content(packed)
        parse(data, digest)
    except ValueError as error:
        return f"what it sent {error}"
    plain.write_bytes(data)
    return None
