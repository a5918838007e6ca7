import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.image import imread
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from vae_lab import decoders, encoders, likelihoods, pictures, posteriors, priors
from vae_lab.callbacks import Pictures
from vae_lab.distributions import centre
from vae_lab.evaluation.refinement import evaluating
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

LEVEL = 1 / 255
"""By how much a pixel is less than its value."""


def make_vae(shape=(1, 4, 4), d=2):
    shape = list(shape)
    parts = encoders.Linear(shape, d), decoders.Linear(shape, d), likelihoods.Gaussian(shape, 0.1)
    return VAE(*parts, priors.StandardNormal(d))


def make_batch(shape=(1, 4, 4), n=12, labels=True):
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.arange(n), torch.arange(n) % 3 if labels else None)


def tiles(figure, rows, columns, height, width, gap=4):
    """The grid's pixels, one for each of a tile's own, from 0 to 1, to LEVEL: [rows, columns, height, width, 3]."""
    image = np.asarray(figure.axes[0].artists[0].pixels)[..., :3] / 255
    h, w = (image.shape[0] + gap) // rows, (image.shape[1] + gap) // columns
    scale = (w - gap) // width
    assert image.shape == (rows * (scale * height + gap) - gap, columns * (scale * width + gap) - gap, 3)
    padded = np.pad(image, ((0, gap), (0, gap), (0, 0))).reshape(rows, h, columns, w, 3).swapaxes(1, 2)
    return padded[:, :, : h - gap : scale, : w - gap : scale]


def names(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_reconstructions_are_the_data_above_the_means():
    vae, batch = make_vae(), make_batch()
    found = tiles(pictures.reconstructions(vae, batch, n=5), 2, 5, 4, 4)
    with torch.no_grad():
        means = vae.decoder(vae.encoder(batch).mean).clamp(0, 1)
    np.testing.assert_allclose(found[0, ..., 0], batch.x[:5, 0], atol=LEVEL)
    np.testing.assert_allclose(found[1, ..., 0], means[:5, 0], atol=LEVEL)
    assert np.ptp(found, axis=-1).max() == 0  # grey


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("posterior", [posteriors.Full, lambda d: posteriors.Flow(d, 2, [4])], ids=["full", "flow"])
@pytest.mark.parametrize("prior", [lambda d: priors.Mixture(d, 3), lambda d: priors.Vamp(d, (1, 4, 4), 3)])
def test_any_posterior_and_prior_can_be_drawn(d, posterior, prior):
    """Where a posterior has no mean, its centre stands for it."""
    torch.manual_seed(0)
    encoder = encoders.MLP((1, 4, 4), d, [5], "tanh", posterior(d))
    vae = VAE(encoder, decoders.Linear((1, 4, 4), d), likelihoods.Gaussian((1, 4, 4), 0.1), prior(d))
    batch = make_batch()
    found = tiles(pictures.reconstructions(vae, batch, n=5), 2, 5, 4, 4)
    with torch.no_grad():
        means = vae.decoder(centre(vae.encoder(batch))).clamp(0, 1)
    np.testing.assert_allclose(found[1, ..., 0], means[:5, 0], atol=LEVEL)
    for grid in (tiles(pictures.samples(vae), 8, 8, 4, 4), tiles(pictures.traversals(vae, batch), d, 9, 4, 4)):
        assert 0 < grid.mean() < 1
    if d == 2:
        assert len(pictures.latent_scatter(vae, [batch]).axes[0].collections[0].get_offsets()) == 12


def test_colours_stay_and_wide_ranges_are_scaled():
    shape = (3, 2, 4)
    batch = make_batch(shape)
    batch = batch._replace(x=batch.x * 8 - 4)
    low, high = pictures.limits_of(batch.x)
    assert (low, high) == (batch.x.min(), batch.x.max())
    assert pictures.limits_of(torch.tensor([0.2, 0.7])) == (0, 1)
    found = tiles(pictures.reconstructions(make_vae(shape), batch, n=3), 2, 3, 2, 4)
    np.testing.assert_allclose(found[0], ((batch.x[:3] - low) / (high - low)).movedim(1, -1), atol=LEVEL)


def test_samples_come_from_their_own_generator():
    vae = make_vae()
    before = torch.get_rng_state()
    one, two = (tiles(pictures.samples(vae, 12, torch.Generator().manual_seed(3)), 3, 4, 4, 4) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    eps = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        means = vae.decoder(eps).clamp(0, 1)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one[..., 0].reshape(12, 4, 4), means[:, 0], atol=LEVEL)


def test_traversals_move_one_dimension_a_row():
    vae, batch = make_vae(d=5), make_batch()
    with torch.no_grad():
        vae.encoder.mu.weight[1] *= 10
        vae.encoder.mu.weight[3] = 0
        mu = vae.encoder(batch).mean[0]
    figure = pictures.traversals(vae, batch, steps=3, span=2, most=4)
    axes = figure.axes[0]
    assert names(axes.xaxis) == ["\N{MINUS SIGN}2", "0", "2"]
    rows = [int(name.strip("${}z_")) for name in names(axes.yaxis)]
    assert rows[0] == 1 and len(rows) == 4 and 3 not in rows  # the most varied first, the unused one left out
    found = tiles(figure, 4, 3, 4, 4)
    for j, row in zip(rows, found, strict=True):
        for value, tile in zip((-2, 0, 2), row, strict=True):
            z = mu.clone()
            z[j] = value
            with torch.no_grad():
                np.testing.assert_allclose(tile[..., 0], vae.decoder(z)[0].clamp(0, 1), atol=LEVEL)


def test_manifold_lies_on_symmetric_quantiles():
    vae, n = make_vae((1, 1, 2)), 6
    with torch.no_grad():  # the two pixels are z itself
        vae.decoder.f.weight.copy_(torch.eye(2))
        vae.decoder.f.bias.zero_()
    found = tiles(pictures.manifold(vae, n, limits=(-4.0, 4.0)), n, n, 1, 2, gap=2)[:, :, 0, :, 0] * 8 - 4
    z0, z1 = found[..., 0], found[..., 1]
    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(n) + 0.5) / n)
    np.testing.assert_allclose(z0, np.tile(quantiles, (n, 1)), atol=8 * LEVEL)  # to the right
    np.testing.assert_allclose(z1, np.tile(quantiles, (n, 1)).T[::-1], atol=8 * LEVEL)  # upwards
    np.testing.assert_allclose(z0, -z0[:, ::-1], atol=16 * LEVEL)
    with pytest.raises(ValueError, match="d = 2"):
        pictures.manifold(make_vae(d=3))


@pytest.mark.parametrize("classes", [0, 3, 15, 30])
def test_scatter_shows_posterior_means(classes):
    vae, batch = make_vae(), make_batch(n=40, labels=False)
    if classes:
        batch = batch._replace(label=torch.arange(40) % classes)
    figure = pictures.latent_scatter(vae, [batch, batch], most=60)
    axes = figure.axes[0]
    with torch.no_grad():
        mu = vae.encoder(batch).mean
    np.testing.assert_allclose(axes.collections[0].get_offsets(), torch.cat([mu, mu])[:60], atol=1e-6)
    legend = axes.get_legend()
    assert (legend is None) == (classes in (0, 30))
    assert legend is None or len(legend.get_texts()) == classes
    assert len(figure.axes) == (2 if classes == 30 else 1)  # a colour bar


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 4, 3), (3, 4, 4), (2, 4, 4), (4, 3), (7,), (1,)])
def test_every_shape_is_drawn(shape, d):
    vae, batch = make_vae(shape, d), make_batch(shape)
    figures = [pictures.reconstructions(vae, batch), pictures.samples(vae), pictures.traversals(vae, batch)]
    for figure in [*figures, pictures.manifold(vae, 3)] if d == 2 else figures:
        axes = figure.axes[0]
        width, height = figure.canvas.get_width_height()
        bounds, image = axes.get_position().bounds, axes.artists[0].pixels
        assert np.allclose((bounds[3] * height, bounds[2] * width), image.shape[:2])  # pixel for pixel
        if len(shape) == 1:
            (lines,) = axes.collections
            assert all(len(segment) == max(2, *shape) for segment in lines.get_segments())


@pytest.mark.parametrize("scale", [1, 2])
def test_tiles_are_drawn_pixel_for_pixel(scale, tmp_path):
    figure = pictures.traversals(make_vae(), make_batch())
    figure.savefig(tmp_path / "drawn.png", dpi=scale * figure.dpi)
    drawn, axes = imread(tmp_path / "drawn.png"), figure.axes[0]
    left, bottom, width, height = (round(v) for v in axes.get_position().bounds * np.tile(drawn.shape[1::-1], 2))
    wanted = axes.artists[0].pixels.numpy().repeat(scale, 0).repeat(scale, 1)
    assert wanted.shape[:2] == (height, width)
    top = len(drawn) - bottom - height
    np.testing.assert_array_equal((255 * drawn[top : top + height, left : left + width]).round(), wanted)


def test_pyplot_is_not_imported():
    # the callbacks cannot keep this promise: torchmetrics, which Lightning imports, breaks it
    code = """
import sys
from vae_lab import decoders, encoders, likelihoods, pictures, priors
from vae_lab.vae import VAE
vae = VAE(encoders.Linear([4], 2), decoders.Linear([4], 2), likelihoods.Gaussian([4], 0.1), priors.StandardNormal(2))
pictures.manifold(vae, 3).canvas.draw()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the callback


class Feed:
    """Batches that Lightning takes for a loader: a list of them it would take for a pytree."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Data(pl.LightningDataModule):
    def __init__(self, val=True):
        super().__init__()
        self.asked = []
        self.splits = {"train": Feed([make_batch(), make_batch()]), "val": Feed([make_batch()] if val else [])}

    def feed(self, split):
        self.asked.append(split)
        return self.splits[split]

    def train_dataloader(self):
        return self.splits["train"]


class Lit(pl.LightningModule):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def training_step(self, batch, batch_idx):
        assert self.vae.training and not self.vae.encoder.training
        q = self.vae.encoder(batch)
        return -self.vae.p_x(q.mean + torch.randn_like(q.mean)).log_prob(batch.x).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(folder, epochs, d=2, data=None, pictures_every=2, logger=False):
    torch.manual_seed(0)
    lit, callback = Lit(make_vae(d=d)), Pictures(folder / "pictures", pictures_every)
    lit.vae.encoder.eval()  # a part that someone froze
    drawn = []
    original = callback._draw
    callback._draw = lambda trainer, pl_module, epoch: (drawn.append(epoch), original(trainer, pl_module, epoch))
    pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    ).fit(lit, datamodule=data or Data())
    return drawn, lit


@pytest.mark.parametrize(("epochs", "every", "expected"), [(4, 2, [2, 4]), (3, 2, [2, 3]), (2, 0, [2])])
def test_callback_draws_every_n_epochs_and_the_last_once(tmp_path, epochs, every, expected):
    drawn, lit = fit(tmp_path, epochs, pictures_every=every)
    assert drawn == expected
    all_names = {"reconstructions", "samples", "traversals", "manifold", "latent_scatter"}
    files = {file.name for file in (tmp_path / "pictures").iterdir()}
    assert files == {f"{n}.png" for n in all_names} | {f"{n}-epoch{e:04d}.png" for n in all_names for e in expected}
    for name in all_names:
        latest = (tmp_path / "pictures" / f"{name}.png").read_bytes()
        assert latest == (tmp_path / "pictures" / f"{name}-epoch{expected[-1]:04d}.png").read_bytes()
        assert latest.endswith(b"IEND\xaeB`\x82")
        assert imread(tmp_path / "pictures" / f"{name}.png").shape[1] > 500
    assert lit.vae.training and not lit.vae.encoder.training


def test_callback_leaves_training_alone(tmp_path):
    (_, often), (_, rarely) = fit(tmp_path, 2, d=3, pictures_every=1), fit(tmp_path, 2, d=3, pictures_every=0)
    for a, b in zip(often.parameters(), rarely.parameters(), strict=True):
        assert torch.equal(a, b)


def test_callback_falls_back_to_the_training_data(tmp_path):
    with_val, without = Data(), Data(val=False)
    fit(tmp_path / "a", 1, d=3, data=with_val)
    fit(tmp_path / "b", 1, d=3, data=without)
    assert (with_val.asked, without.asked) == (["val"], ["val", "train"])
    assert {f.name for f in (tmp_path / "b" / "pictures").glob("*s.png")} == {
        "reconstructions.png",
        "samples.png",
        "traversals.png",
    }


def test_callback_logs_to_tensorboard_alone(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path)
    fit(tmp_path, 2, d=3, logger=[board, CSVLogger(tmp_path)])
    events = EventAccumulator(board.log_dir).Reload()
    assert set(events.Tags()["images"]) == {f"pictures/{n}" for n in ("reconstructions", "samples", "traversals")}
    assert [event.step for event in events.Images("pictures/samples")] == [4]


def test_callback_logs_to_wandb(tmp_path, monkeypatch):
    from pytorch_lightning.loggers import WandbLogger

    logged = []
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, key, images, step: logged.append((key, images, step)))
    monkeypatch.setattr(WandbLogger, "experiment", None)
    fit(tmp_path, 2, d=3, logger=WandbLogger(save_dir=tmp_path, mode="disabled"))
    assert logged[1] == ("pictures/samples", [str(tmp_path / "pictures" / "samples.png")], 4)
    assert len(logged) == 3


def test_callback_checks_its_argument(tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs"):
        Pictures(tmp_path, every_n_epochs=-1)


def test_parts_in_any_mode_are_restored():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(net):
        assert not any(part.training for part in net.modules())
        raise KeyError
    assert [part.training for part in net.modules()] == [True, True, False]
