"""Draws a VAE while it is trained."""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib.image
import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Generator

from vae_lab import pictures
from vae_lab.checks import whole
from vae_lab.evaluation.refinement import evaluating, fitted
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

ROWS = 20
"""How many classes of a conditional model are drawn: the first."""


class Pictures(pl.Callback):
    """Draws the model on validation data, into PNG files and to the run's W&B and TensorBoard loggers.

    `<name>.png` is the latest picture, `<name>-epoch0010.png` the one after ten epochs. Data and prior draws are the
    same every time, so that pictures compare; training's random numbers are left alone. Where the encoder is not
    amortised the data are those of the first validation batch, refined.

    Args:
        folder: where the files go
        every_n_epochs: how often to draw; the end of the fit is drawn in any case, and with 0 nothing else is
    """

    def __init__(self, folder: Path | str, every_n_epochs: int = 10) -> None:
        self.folder, self.every_n_epochs = Path(folder), whole("every_n_epochs", every_n_epochs, least=0)
        self._drawn: int | None = None  # epochs completed when it last drew

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drawn = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and epoch % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, epoch)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._drawn != trainer.current_epoch:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        self._drawn = epoch
        if not trainer.is_global_zero:
            return
        vae = pl_module.vae
        assert isinstance(vae, VAE)
        self.folder.mkdir(parents=True, exist_ok=True)
        with evaluating(vae):
            for name, figure in _figures(vae, _data(trainer)):
                png = _png(figure)
                _write(self.folder / f"{name}-epoch{epoch:04d}.png", png)
                _write(self.folder / f"{name}.png", png)
                _log(trainer, name, self.folder / f"{name}.png")


def _data(trainer: pl.Trainer) -> Iterable[Batch]:
    """The validation data in order, or the training data where there are none; never the test data."""
    feed = trainer.datamodule.feed("val")  # type: ignore[attr-defined]
    return feed if len(feed) else trainer.datamodule.feed("train")  # type: ignore[attr-defined]


def _figures(vae: VAE, batches: Iterable[Batch]) -> Iterator[tuple[str, Figure]]:
    """Those pictures that suit the model, by name; one exists at a time."""
    first, noise, classes = next(iter(batches)), Generator().manual_seed(0), vae.decoder.classes
    if not vae.encoder.amortised:
        vae, first = fitted(vae, first, Generator(first.x.device).manual_seed(0))
        batches = [first]
    limits = pictures.limits_of(first.x)
    yield "reconstructions", pictures.reconstructions(vae, first)
    if classes:
        yield "samples", pictures.class_samples(vae, range(min(classes, ROWS)), generator=noise, limits=limits)
    else:
        yield "samples", pictures.samples(vae, generator=noise, limits=limits)
    yield "traversals", pictures.traversals(vae, first)
    if vae.d == 2:
        label = int(first.label[0]) if classes and first.label is not None else None  # as in the traversals
        yield "manifold", pictures.manifold(vae, limits=limits, label=label)
        yield "latent_scatter", pictures.latent_scatter(vae, batches)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it: whoever watches the folder never sees half a picture."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _log(trainer: pl.Trainer, name: str, path: Path) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=f"pictures/{name}", images=[str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            pixels = matplotlib.image.imread(path)[..., :3]
            logger.experiment.add_image(f"pictures/{name}", pixels, trainer.global_step, dataformats="HWC")
