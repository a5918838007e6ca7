"""Models that are given the label: p(x | z, y)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import vae_lab
from vae_lab import decoders, encoders, likelihoods, pictures, priors, runs
from vae_lab.cli import main
from vae_lab.data.module import InMemory
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

LEVEL = 1 / 255
"""By how much a pixel is less than its value."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The experiment, cut short."""
    folder = tmp_path_factory.mktemp("conditional")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["train", "experiment=conditional_digits", "trainer.max_epochs=10", "logger=none"])
    [config] = folder.glob("outputs/*/config.yaml")
    return config.parent


def noise():
    return torch.Generator().manual_seed(0)


def split(run, name):
    source, preprocessing, sampling, seed = runs.load_data(run)
    batches = [*InMemory(source, preprocessing, sampling, seed).feed(name)]
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.label for batch in batches])


def test_drawn_classes_are_recognised(run):
    """By a classifier that has seen real digits alone. It finds the class of nearly all of them; of chance, a tenth."""
    vae, (x, label) = vae_lab.load(run), split(run, "train")
    classifier = LogisticRegression(max_iter=2000).fit(x.flatten(1), label)
    wanted = torch.arange(10).repeat_interleave(100)
    with torch.no_grad():
        drawn = vae.sample(torch.randn(1000, vae.d, generator=noise()), wanted)
    assert classifier.score(drawn.flatten(1), wanted) > 0.9


@torch.no_grad()
def test_the_label_matters(run):
    vae, (x, label) = vae_lab.load(run), split(run, "test")
    z = torch.randn(1, vae.d, generator=noise()).expand(10, -1)
    images = vae.sample(z, torch.arange(10))
    assert torch.pdist(images.flatten(1)).min() > 0.5  # the same z, other labels: 64 pixels in [0, 1]
    rec = [vae.p_x(vae.encoder(Batch(x, label, y)).mean, y).log_prob(x) for y in (label, (label + 1) % 10)]
    gain = rec[0] - rec[1]
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5  # data are likelier under their own label


def test_evaluate_gives_the_labels(run, capsys):
    main(["evaluate", f"run={run}"])
    assert "elbo" in capsys.readouterr().out


def test_pictures_of_the_run(run):
    assert {"samples.png", "traversals.png", "manifold.png"} <= {p.name for p in (run / "pictures").iterdir()}


# Pictures


def make_vae(classes=3):
    torch.manual_seed(0)
    shape, d = [1, 4, 4], 2
    parts = encoders.Linear(shape, d, classes), decoders.Linear(shape, d, classes=classes)
    return VAE(*parts, likelihoods.Gaussian(shape, 0.1), priors.StandardNormal(d))


def make_batch(n=6):
    return Batch(torch.rand(n, 1, 4, 4, generator=noise()), torch.arange(n), torch.arange(n) % 3)


def drawn(figure, rows, columns, gap=4):
    """The grid's pixels, one for each of a tile's own: [rows, columns, 4, 4]."""
    image = np.asarray(figure.axes[0].artists[0].pixels)[..., 0] / 255
    padded = np.pad(image, ((0, gap), (0, gap)))
    h, w = padded.shape[0] // rows, padded.shape[1] // columns
    scale = (h - gap) // 4
    return padded.reshape(rows, h, columns, w).swapaxes(1, 2)[:, :, : h - gap : scale, : w - gap : scale]


@torch.no_grad()
def test_class_samples_are_a_row_for_each_label():
    vae = make_vae()
    figure = pictures.class_samples(vae, [0, 2], n=4, generator=noise())
    z = torch.randn(4, 2, generator=noise())
    expected = torch.stack([vae.sample(z, torch.full((4,), label)) for label in (0, 2)])
    np.testing.assert_allclose(drawn(figure, 2, 4), expected[:, :, 0].clamp(0, 1), atol=LEVEL)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0", "2"]


@torch.no_grad()
def test_pictures_use_the_labels_of_the_data():
    vae, batch = make_vae(), make_batch()._replace(label=torch.tensor([2, 1, 0, 1, 0, 2]))
    means = vae.p_x(vae.encoder(batch).mean, batch.label).mean.clamp(0, 1)
    np.testing.assert_allclose(drawn(pictures.reconstructions(vae, batch, n=6), 2, 6)[1], means[:, 0], atol=LEVEL)
    figure = pictures.traversals(vae, batch, steps=3)
    assert figure.axes[0].get_title(loc="left") == "One latent dimension at a time, class 2"
    middle = drawn(figure, 2, 3)[:, 1]
    mu = vae.encoder(batch).mean
    for tile, j in zip(middle, mu.var(0, correction=0).argsort(descending=True).tolist(), strict=True):
        z = mu[0].clone()
        z[j] = 0.0
        np.testing.assert_allclose(tile, vae.p_x(z, torch.tensor(2)).mean[0].clamp(0, 1), atol=LEVEL)
    assert "class 1:" in pictures.manifold(vae, 3, label=1).axes[0].get_title(loc="left")
    assert "class" not in pictures.manifold(make_vae(0), 3).axes[0].get_title(loc="left")


# Labels that do not fit


def refused(capsys, *words):
    with pytest.raises(SystemExit):
        main(["train", "logger=none", *words])
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not Path("outputs").exists() or not any(Path("outputs").iterdir())
    return said


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Data of one's own, with labels 0 .. 3 under a name of their own."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("own.npz", x=rng.random((60, 10), dtype=np.float32), kind=rng.integers(0, 4, 60))
    return ["data=arrays", "data.root=own.npz"]


def test_labels_must_fit_the_classes(own, capsys):
    named = [*own, "data.label_key=kind"]
    assert "classes must be 0 for vae_lab.data.sources.Arrays, which has no labels" in refused(
        capsys, *own, "classes=4"
    )
    assert "classes must be above every label, from 0; these are 0 to 3, got 3" in refused(capsys, *named, "classes=3")
    assert "classes must be a whole number >= 0, got -1" in refused(capsys, *named, "classes=-1")
    main(["train", *named, "classes=4", "trainer.max_epochs=1", "logger=none"])
    [config] = Path("outputs").glob("*/config.yaml")
    assert vae_lab.load(config.parent).decoder.classes == 4
