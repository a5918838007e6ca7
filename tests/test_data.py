"""Sources and their splits, preprocessing, sampling, feeds: what a model is given, and in which order."""

import gzip
import hashlib
import math
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from vae_lab.data import idx
from vae_lab.data.arrays import array_shape
from vae_lab.data.feed import Feed, Indices
from vae_lab.data.module import InMemory
from vae_lab.data.preprocessing import BinarisedDynamic, BinarisedStatic, Dequantised, Raw
from vae_lab.data.sampling import Shuffled, WithReplacement
from vae_lab.data.sources import Arrays, Digits, FashionMnist, FreyFace, Mnist, Source, Splits
from vae_lab.interfaces import Batch, Block
from vae_lab.seeds import seed_of

MIRRORS = ["http://127.0.0.1:1"]


def digits(validation=180, test=360, shape=(1, 8, 8)) -> Digits:
    return Digits(shape=shape, validation=validation, test=test)


def in_memory(source=None, preprocessing=None, sampling=None, seed=0) -> InMemory:
    sampling = sampling or Shuffled(batch_size=100, eval_batch_size=250, block=3)
    return InMemory(source or digits(), preprocessing or Raw(), sampling, seed)


def arrays(path, shape, key=None, label_key=None, validation=0.1, test=0.1) -> Arrays:
    return Arrays(path, shape, key, label_key, validation, test)


def gather(feed: Feed, field: str) -> torch.Tensor:
    return torch.cat([getattr(batch, field) for batch in feed])


def numbered(tmp_path: Path, n: int = 200) -> Path:
    """A file of n data, each of which says which one it is."""
    path = tmp_path / "numbered.npz"
    x = np.arange(n, dtype=np.float32)[:, None].repeat(2, axis=1)
    np.savez(path, x=x, y=np.arange(n))
    return path


def real(*parts: str) -> Path:
    folder = os.environ.get("VAE_LAB_DATA")
    if folder is None:
        pytest.skip("VAE_LAB_DATA, a folder of real data sets, is not set")
    path = Path(folder, *parts)
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path


# Splits


def test_digits_are_whole():
    from sklearn.datasets import load_digits

    splits = digits().load()
    assert [len(part.x) for part in splits] == [1797 - 540, 180, 360]
    x = torch.cat([part.x for part in splits])
    assert x.dtype == torch.uint8 and x.shape[1:] == (1, 8, 8) and x.max() == 16
    # Each datum, with its label, as often as in the file: nothing lost, doubled or mislabelled.
    rows = torch.cat([x.flatten(1).long(), torch.cat([part.label for part in splits])[:, None]], 1)
    file = np.column_stack([load_digits().data, load_digits().target]).astype(int)
    assert sorted(rows.tolist()) == sorted(file.tolist())


@pytest.mark.parametrize(("validation", "test"), [(0, 0), (0, 0.5), (30, 20), (0.1, 0.1), (198, 1)])
def test_splits_are_disjoint_and_cover_the_data(tmp_path, validation, test):
    splits = arrays(numbered(tmp_path), [2], validation=validation, test=test).load()
    sizes = [part if isinstance(part, int) else int(part * 200) for part in (validation, test)]
    assert [len(splits.val.x), len(splits.test.x)] == sizes
    assert sorted(torch.cat([part.label for part in splits]).tolist()) == list(range(200))
    assert all(torch.equal(part.x[:, 0].long(), part.label) for part in splits)


def test_splits_are_always_the_same(tmp_path):
    path = numbered(tmp_path)
    torch.manual_seed(1)
    first = arrays(path, [2]).load()
    torch.manual_seed(2)
    second = arrays(path, [2]).load()
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))
    assert first.train.label.tolist() != sorted(first.train.label.tolist())
    more_validation = arrays(path, [2], validation=0.4).load()
    assert torch.equal(more_validation.test.x, first.test.x)


@pytest.mark.parametrize("bad", [-1, 1.0, -0.1, True, math.nan])
def test_share_is_checked(bad):
    with pytest.raises(ValueError, match=r"^validation must be a count >= 0 or a fraction in \[0, 1\)"):
        digits(validation=bad)
    with pytest.raises(ValueError, match=r"^test must be a count"):
        digits(test=bad)


def test_training_data_must_remain():
    with pytest.raises(ValueError, match=r"leave data to train on.*1500 \+ 297 of 1797"):
        digits(validation=1500, test=297).load()
    assert len(digits(validation=1500, test=296).load().train.x) == 1


def test_shape_may_be_any_with_as_many_values():
    assert torch.equal(digits(shape=[64]).load().train.x, digits().load().train.x.flatten(1))
    with pytest.raises(ValueError, match=r"^shape must have 64 values.*got \[8, 9\]"):
        digits(shape=[8, 9])


# Arrays


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((20, 6), [6]),
        ((20, 4, 5), [1, 4, 5]),
        ((20, 6, 5, 3), [3, 6, 5]),
        ((20, 6, 5, 1), [1, 6, 5]),
        ((20, 5, 6, 4), [4, 5, 6]),
        ((20, 3, 4, 5), [3, 4, 5]),
        ((20, 3, 4, 3), [3, 4, 3]),
        ((20, 5, 6, 7), [5, 6, 7]),
        ((20, 2, 3, 4, 5), [2, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_layouts(tmp_path, shape, seen, suffix):
    path = tmp_path / f"a.{suffix}"
    values = np.random.default_rng(0).random(shape)
    np.save(path, values) if suffix == "npy" else np.savez(path, values)
    assert array_shape(str(path)) == seen
    source = arrays(path, seen, validation=0, test=0)
    train = source.load().train.x
    assert source.levels is None and train.dtype == torch.float32 and list(train.shape) == [20, *seen]
    moved = len(shape) == 4 and seen != list(shape[1:])
    expected = (np.moveaxis(values, 3, 1) if moved else values.reshape(20, *seen)).astype(np.float32)
    assert sorted(datum.tobytes() for datum in expected) == sorted(datum.numpy().tobytes() for datum in train)


def test_uint8_has_256_levels(tmp_path):
    np.save(tmp_path / "a.npy", np.full((10, 3), 255, np.uint8))
    source = arrays(tmp_path / "a.npy", [3])
    assert source.levels == 256 and source.load().train.x.dtype == torch.uint8


def test_shape_is_read_without_the_data(tmp_path):
    whole = tmp_path / "a.npy"
    np.save(whole, np.zeros((1000, 7, 9), np.float32))
    cut = tmp_path / "cut.npy"
    cut.write_bytes(whole.read_bytes()[:200])
    assert array_shape(cut) == [1, 7, 9]
    with pytest.raises(ValueError, match=r"cut\.npy cannot be read"):
        arrays(cut, [63]).load()


def test_names_in_an_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, other=np.zeros((9, 4)), images=np.ones((9, 2)), label=np.arange(9), y=np.zeros((9, 2)))
    assert array_shape(path) == [2] and array_shape(path, "other") == [4]
    assert arrays(path, [2]).label_key == "label"  # y is no set of labels
    assert arrays(path, [4], key="other", validation=0, test=0).load().train.x.sum() == 0
    with pytest.raises(ValueError, match=r"^key must be one of other, images, label, y.*'none'"):
        array_shape(path, "none")
    with pytest.raises(ValueError, match=r"^label_key must name 9 whole numbers"):
        arrays(path, [2], label_key="y")
    np.savez(path, a=np.zeros((9, 4)), b=np.zeros((9, 4)))
    with pytest.raises(ValueError, match=r"^key must name the array of .*a\.npz.*one of a, b"):
        array_shape(path)
    np.save(tmp_path / "a.npy", np.zeros((9, 4)))
    with pytest.raises(ValueError, match=r"^key must be null"):
        array_shape(tmp_path / "a.npy", "x")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[0.0, np.nan]] * 9), "not finite"),
        (np.array([[0.0, 1e300]] * 9), "not finite"),
        (np.zeros((9, 2), np.int64), "uint8 or float"),
        (np.zeros((9, 2), bool), "uint8 or float"),
        (np.zeros((9, 2), complex), "uint8 or float"),
        (np.array([[{}, 1]] * 9, object), "uint8 or float"),
        (np.zeros(9), r"must hold an array \[N, ...\]"),
        (np.zeros((0, 2)), r"must hold an array \[N, ...\]"),
    ],
)
def test_arrays_that_are_refused(tmp_path, values, says):
    path = tmp_path / "bad.npy"
    np.save(path, values)
    with pytest.raises(ValueError, match=says) as caught:
        arrays(path, [2]).load()
    assert "bad.npy" in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("a.npy", b""), ("a.npz", b"PK"), ("a.npy", b"text"), ("a.txt", b"1")])
def test_files_that_are_no_arrays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        array_shape(tmp_path / name)


def test_missing_files():
    with pytest.raises(ValueError, match=r"^root must .* no file /nowhere/a\.npy"):
        array_shape("/nowhere/a.npy")
    with pytest.raises(ValueError, match=r"^root must .* give data\.root"):
        FreyFace([1, 28, 20], None, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"/nowhere/frey_face\.npz"):
        FreyFace([1, 28, 20], "/nowhere", 0.1, 0.1).load()


def test_frey_face():
    splits = FreyFace([1, 28, 20], real("frey_face.npz").parent, 0.1, 0.1).load()
    assert [len(part.x) for part in splits] == [1965 - 392, 196, 196]
    assert splits.train.x.dtype == torch.uint8 and splits.train.label is None


# IDX files


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def idx_root(tmp_path, monkeypatch) -> Path:
    """A folder with a small MNIST, which the program takes for the real one."""
    generator = np.random.default_rng(0)
    for images, labels, n in ((idx.TRAIN_IMAGES, idx.TRAIN_LABELS, 50), (idx.TEST_IMAGES, idx.TEST_LABELS, 20)):
        for name, shape, top in ((images, (n, 28, 28), 256), (labels, (n,), 10)):
            data = idx_bytes(generator.integers(0, top, shape, np.uint8))
            monkeypatch.setitem(idx.MNIST.sha256, name, hashlib.sha256(data).hexdigest())
            (tmp_path / name).write_bytes(data)
    return tmp_path


def mnist(root: Path) -> Source:
    return Mnist([1, 28, 28], validation=10, root=root, cache=None, mirrors=MIRRORS)


def same(a: Splits, b: Splits) -> bool:
    return all(torch.equal(p.x, q.x) and torch.equal(p.label, q.label) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_idx_files_are_found(idx_root, tmp_path, folder, packed, dotted):
    expected = mnist(idx_root).load()
    assert [len(part.x) for part in expected] == [40, 10, 20]
    root = tmp_path / "elsewhere"
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in idx.MNIST.sha256:
        data = (idx_root / name).read_bytes()
        spelling = name.replace("-idx", ".idx") if dotted else name
        path = root / folder / (f"{spelling}.gz" if packed else spelling)
        path.write_bytes(gzip.compress(data, 1) if packed else data)
    assert same(mnist(root).load(), expected)


def refused(root: Path, name: str) -> str:
    with pytest.raises(ValueError, match=name) as caught:
        mnist(root).load()
    message = str(caught.value)
    assert "\n" not in message and "data.root" in message
    return message


@pytest.mark.parametrize("name", [idx.TRAIN_IMAGES, idx.TRAIN_LABELS, idx.TEST_IMAGES, idx.TEST_LABELS])
def test_wrong_idx_files_are_named(idx_root, name):
    path = idx_root / name
    data = path.read_bytes()
    for content, says in (
        (data[:-1], "values where its header says"),
        (data + b"\0", "values where its header says"),
        (data[:-1] + bytes([data[-1] ^ 1]), "SHA-256"),
        (b"", "not an IDX file"),
        (b"\0\0\x08\x03\0", "not an IDX file"),
        (b"<html>", "not an IDX file"),
    ):
        path.write_bytes(content)
        assert says in refused(idx_root, name)
    path.unlink()
    assert f"{name} (or {name}.gz) is not in" in refused(idx_root, name)
    packed = gzip.compress(data, 1)
    for content, says in (
        (packed[: len(packed) // 2], "truncated"),
        (b"", "not an IDX file"),
        (data, "not a sound gzip"),
        (packed[:20] + b"\xff" * 20 + packed[40:], "not"),
    ):
        (idx_root / f"{name}.gz").write_bytes(content)
        assert says in refused(idx_root, f"{name}.gz")


def test_fashion_mnist(tmp_path):
    packed = real("fashion-mnist")

    def load(root: Path) -> Splits:
        return FashionMnist([1, 28, 28], validation=5000, root=root, cache=None, mirrors=MIRRORS).load()

    splits = load(packed.parent)
    assert [len(part.x) for part in splits] == [55_000, 5_000, 10_000]
    assert splits.train.x.dtype == torch.uint8 and splits.test.label.bincount().tolist() == [1000] * 10
    for path in packed.glob("*.gz"):
        with gzip.open(path) as source, (tmp_path / path.stem).open("wb") as unpacked:
            shutil.copyfileobj(source, unpacked)
    assert same(load(tmp_path), splits)


# Preprocessing


def test_raw():
    pixels = torch.arange(17, dtype=torch.uint8)[:, None]
    generator = torch.Generator()
    assert torch.equal(Raw()(pixels, 17, generator), torch.arange(17.0)[:, None] / 16)
    floats = torch.randn(5, 2)
    assert torch.equal(Raw()(floats, None, generator), floats)


def test_dequantised():
    n, levels = 20_000, 17
    pixels = torch.tensor([0, 3, 16], dtype=torch.uint8).repeat(n, 1)
    x = Dequantised(seed=0)(pixels, levels, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32 and x.min() >= 0 and x.max() < 1
    assert torch.equal((x * levels).floor().byte(), pixels)
    u = x.double() * levels - pixels
    error = 1 / math.sqrt(12 * n)  # of the mean of n uniform numbers
    assert (u.mean(0) - 0.5).abs().max() < 5 * error
    with pytest.raises(ValueError, match="no levels"):
        Dequantised(seed=0)(torch.rand(3, 2), None, torch.Generator())


def test_dequantised_stays_below_one_in_spite_of_rounding(monkeypatch):
    # 255 + u rounds to 256 in float32 for the largest u, which come up once in 100,000 pixels.
    monkeypatch.setattr(torch, "rand", lambda shape, generator, device: torch.full(shape, 1 - 2**-24))
    assert Dequantised(seed=0)(torch.full((1, 1), 255, dtype=torch.uint8), 256, torch.Generator()) < 1


def test_thresholded():
    pixels = torch.arange(17, dtype=torch.uint8)[:, None]
    x = BinarisedStatic("threshold", seed=0)(pixels, 17, torch.Generator())
    assert x.flatten().tolist() == [0.0] * 8 + [1.0] * 9
    with pytest.raises(ValueError, match=r"^method must be one of threshold, bernoulli"):
        BinarisedStatic("treshold", seed=0)


@pytest.mark.parametrize("preprocessing", [BinarisedStatic("bernoulli", seed=0), BinarisedDynamic(seed=0)])
def test_bernoulli_has_the_right_mean(preprocessing):
    n, levels = 20_000, 5
    pixels = torch.arange(levels, dtype=torch.uint8).repeat(n, 1)
    x = preprocessing(pixels, levels, torch.Generator().manual_seed(0))
    p = torch.arange(levels) / (levels - 1)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert ((x.mean(0) - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()  # exact where p is 0 or 1


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize(
    "preprocessing", [BinarisedStatic("threshold", 0), BinarisedStatic("bernoulli", 0), BinarisedDynamic(0)]
)
def test_floats_to_binarise_lie_in_the_unit_interval(preprocessing, value):
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        preprocessing(torch.tensor([[0.5, value]]), None, torch.Generator())
    assert preprocessing(torch.tensor([[0.0, 1.0]]), None, torch.Generator()).tolist() == [[0.0, 1.0]]


# Sampling


def order(sampling, epoch=0, seed=0, n=1000) -> list[int]:
    indices = Indices(n, sampling.batch_size, torch.device("cpu"), sampling, seed)
    indices.set_epoch(epoch)
    return indices.order().tolist()


@pytest.mark.parametrize("kind", [Shuffled, WithReplacement])
def test_order_depends_on_epoch_and_seed_alone(kind):
    sampling = kind(batch_size=64, eval_batch_size=100, block=1)
    first = order(sampling)
    torch.manual_seed(5)
    assert order(sampling) == first
    assert order(kind(batch_size=1, eval_batch_size=1, block=1)) == first
    assert order(sampling, epoch=1) != first
    assert order(sampling, seed=1) != first
    assert order(sampling, seed=1) != order(sampling, epoch=1)


def test_shuffled_visits_each_datum_once():
    for epoch in range(3):
        assert sorted(order(Shuffled(64, 100, block=3), epoch)) == list(range(1000))


def test_with_replacement_leaves_one_in_e_untouched():
    n = 20_000
    drawn = torch.tensor(order(WithReplacement(100, 100, block=3), n=n))
    assert len(drawn) == n and drawn.min() >= 0 and drawn.max() < n
    untouched = 1 - len(drawn.unique()) / n
    error = math.sqrt((math.exp(-1) - 2 * math.exp(-2)) / n)  # of the share of empty boxes after n balls into n
    assert abs(untouched - math.exp(-1)) < 5 * error
    quarters = torch.histc(drawn.float(), 4, 0, n) / n
    assert (quarters - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / n)


@pytest.mark.parametrize("kind", [Shuffled, WithReplacement])
def test_batch_sizes_are_checked(kind):
    with pytest.raises(ValueError, match=r"^batch_size must be a whole number >= 1, got 0"):
        kind(batch_size=0, eval_batch_size=1, block=1)
    with pytest.raises(ValueError, match=r"^eval_batch_size must"):
        kind(batch_size=1, eval_batch_size=-1, block=1)
    with pytest.raises(ValueError, match=r"^block must"):
        kind(batch_size=1, eval_batch_size=1, block=0)


def test_blocks_are_the_feed_cut_in_order():
    data = in_memory(sampling=Shuffled(100, 100, block=5))
    blocks = data.train_dataloader()
    assert [len(block) for block in blocks] == [5, 5, 3] and len(blocks) == 3
    one_by_one = torch.cat([batch.index for batch in data.train_feed()])
    assert torch.equal(torch.cat([batch.index for block in blocks for batch in block]), one_by_one)


@pytest.mark.parametrize("label", [None, torch.arange(30) % 7])
def test_a_block_gathers_its_batches(label):
    rows = Batch(torch.rand(30, 2), torch.arange(30), label)
    chosen = torch.randint(30, (19,))
    block = Block(rows, 4, chosen)
    assert (len(block), block.n, block.sizes()) == (5, 19, [4, 4, 4, 4, 3])
    same_batches(block, rows, chosen.split(4))
    same_batches(Block(block.gathered(), 4), rows, chosen.split(4))
    for first, rest in (block.at(2), Block(block.gathered(), 4).at(2)):
        same_batches(first, rows, chosen[:8].split(4))
        same_batches(rest, rows, chosen[8:].split(4))
    nothing, everything = block.at(0)
    assert not len(nothing) and not list(nothing) and everything.n == 19
    assert [part.n for part in block.parts(2)] == [8, 8, 3]


def same_batches(block: Block, rows: Batch, chosen: tuple[torch.Tensor, ...]) -> None:
    for batch, index in zip(block, chosen, strict=True):
        for own, v in zip(batch, rows, strict=True):
            assert (own is None and v is None) or torch.equal(own, v[index])


def test_runs_that_share_their_data_have_the_very_same_rows():
    """By which a pack knows that it may gather the batches of all at once."""
    one, other, another = in_memory(), in_memory(seed=1), in_memory(preprocessing=Dequantised(seed=0))
    other.share(one)
    assert all(block.rows is one.feed("train").rows for block in one.train_dataloader())  # gathered when asked for
    assert one.train_feed().rows is other.train_feed().rows is one.feed("train").rows
    assert one.train_feed().rows is not in_memory().train_feed().rows
    assert another.train_feed().rows is another.train_feed().rows is not another.feed("train").rows


def test_a_block_of_large_data_has_fewer_batches(monkeypatch):
    monkeypatch.setattr("vae_lab.data.feed.ROOM", 3 * 100 * 64 * 4 + 1)
    data = in_memory(sampling=Shuffled(100, 100, block=5))
    assert [len(block) for block in data.train_dataloader()] == [3, 3, 3, 3, 1]
    monkeypatch.setattr("vae_lab.data.feed.ROOM", 1)
    assert len(data.train_dataloader()) == 13


# Feeds


def test_seeds_are_stable():
    assert seed_of(0, "order", 1) == 2002067703672271585
    many = {seed_of(seed, name, epoch) for seed in range(10) for name in ("order", "pixels") for epoch in range(10)}
    assert len(many) == 200 and all(0 <= seed < 2**63 for seed in many)


def test_training_batches():
    data = in_memory(sampling=Shuffled(batch_size=100, eval_batch_size=250, block=3))
    feed = data.train_feed()
    batches = list(feed)
    assert len(feed) == len(batches) == 13
    assert [len(batch.x) for batch in batches] == [100] * 12 + [57]
    train = data.splits.train
    for batch in batches:
        assert batch.x.dtype == torch.float32 and batch.x.shape[1:] == (1, 8, 8)
        assert torch.equal(batch.x, train.x[batch.index].float() / 16)
        assert torch.equal(batch.label, train.label[batch.index])
    assert torch.equal(gather(feed, "index"), gather(feed, "index"))
    feed.sampler.set_epoch(1)
    assert not torch.equal(gather(feed, "index"), torch.cat([batch.index for batch in batches]))


@pytest.mark.parametrize(("split", "n"), [("train", 1257), ("val", 180), ("test", 360)])
def test_evaluation_batches_are_in_order(split, n):
    data = in_memory(sampling=WithReplacement(batch_size=100, eval_batch_size=250, block=3))
    feed = data.feed(split)
    assert gather(feed, "index").tolist() == list(range(n))
    assert torch.equal(gather(feed, "label"), getattr(data.splits, split).label)
    assert [len(batch.x) for batch in feed] == [250] * (n // 250) + [n % 250] and len(feed) == n // 250 + 1


def test_unknown_split():
    with pytest.raises(ValueError, match=r"^split must be one of train, val, test"):
        in_memory().feed("valid")


def test_no_validation_data():
    data = in_memory(digits(validation=0))
    assert data.val_dataloader() == [] and list(data.feed("val")) == []
    assert sum(len(batch.x) for batch in data.test_dataloader()) == 360


def test_data_without_labels(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((50, 3)))
    data = in_memory(arrays(tmp_path / "a.npy", [3]))
    assert all(batch.label is None for feed in (data.train_feed(), data.feed("val")) for batch in feed)


def by_datum(feed: Feed, epoch: int) -> torch.Tensor:
    feed.sampler.set_epoch(epoch)
    batches = list(feed)
    return torch.cat([batch.x for batch in batches])[torch.cat([batch.index for batch in batches]).argsort()]


@pytest.mark.parametrize("preprocessing", [Dequantised(seed=0), BinarisedDynamic(seed=0)])
def test_training_data_are_drawn_afresh(preprocessing):
    data = in_memory(preprocessing=preprocessing)
    feed = data.train_feed()
    assert feed.rows.x.dtype == torch.uint8
    first, second = by_datum(feed, 0), by_datum(feed, 1)
    assert not torch.equal(first, second)
    assert torch.equal(by_datum(feed, 0), first)
    assert torch.equal(by_datum(in_memory(preprocessing=preprocessing).train_feed(), 1), second)
    assert not torch.equal(by_datum(in_memory(preprocessing=preprocessing, seed=1).train_feed(), 0), first)
    # Within an epoch, too, batches are independent draws: two means of n pixels differ by noise alone.
    p = data.splits.train.x / 16
    error = (p * (1 - p)).sum().sqrt() / p.numel()
    if isinstance(preprocessing, BinarisedDynamic):
        assert (torch.stack([first, second]).mean(dim=(1, 2, 3, 4)) - p.mean()).abs().max() < 5 * error


def test_batches_of_equal_pixels_get_different_draws(tmp_path):
    np.save(tmp_path / "grey.npy", np.full((64, 100), 128, np.uint8))
    data = in_memory(arrays(tmp_path / "grey.npy", [100], test=0), BinarisedDynamic(0), Shuffled(8, 8, block=3))
    rows = gather(data.train_feed(), "x")
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("method", ["threshold", "bernoulli"])
def test_static_training_data_stay_the_same(method):
    feed = in_memory(preprocessing=BinarisedStatic(method, seed=0)).train_feed()
    first = by_datum(feed, 0)
    assert torch.equal(by_datum(feed, 1), first)
    assert torch.equal(by_datum(in_memory(preprocessing=BinarisedStatic(method, 0), seed=9).train_feed(), 0), first)
    reseeded = by_datum(in_memory(preprocessing=BinarisedStatic(method, seed=1)).train_feed(), 0)
    assert torch.equal(reseeded, first) == (method == "threshold")


@pytest.mark.parametrize("kind", [Dequantised, BinarisedDynamic])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_data_do_not_depend_on_the_run(kind, split):
    one = in_memory(preprocessing=kind(seed=0), seed=1)
    two = in_memory(preprocessing=kind(seed=0), sampling=Shuffled(10, 11, block=3), seed=2)
    two.feed("test")  # what is drawn for one split does not move another
    two_x = gather(two.feed(split), "x")
    assert torch.equal(gather(one.feed(split), "x"), two_x)
    assert torch.equal(gather(two.feed(split), "x"), two_x)
    assert not torch.equal(gather(in_memory(preprocessing=kind(seed=1)).feed(split), "x"), two_x)


# Under Lightning


class Recorder(pl.LightningModule):
    """Remembers the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int], float]] = []

    def training_step(self, block, _):
        [batch] = block
        self.seen.append((self.current_epoch, batch.index.tolist(), batch.x.sum().item()))
        return self.weight.sum()

    def validation_step(self, batch, _): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, resume: Path | None = None) -> list[tuple[int, list[int], float]]:
    """Eight steps, three in an epoch, with a checkpoint after each; the batches that the model was given."""
    recorder = Recorder()
    trainer = pl.Trainer(
        max_steps=8,
        accelerator="cpu",
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = in_memory(preprocessing=BinarisedDynamic(0), sampling=Shuffled(500, 500, block=1))
    trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    return recorder.seen


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_in_mid_epoch_sees_the_same_batches(tmp_path):
    through = fit(tmp_path)
    assert [epoch for epoch, _, _ in through] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert len({tuple(index) for _, index, _ in through}) == 8
    for step in range(1, 8):
        assert fit(tmp_path / "again", tmp_path / f"step={step}.ckpt") == through[step:]
