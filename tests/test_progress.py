from io import StringIO

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import nn

from vae_lab.callbacks import Progress, progress
from vae_lab.interfaces import Batch


class Feed:
    """Blocks of one batch. Lightning would take a list of them for several loaders."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([[Batch(torch.zeros(8, 3), torch.arange(8))]] * 4)


class Lit(pl.LightningModule):
    def __init__(self, failure=None):
        super().__init__()
        self.layer, self.failure = nn.Linear(3, 1), failure

    def training_step(self, batch, batch_idx):
        if self.failure is not None and self.global_step == 5:
            raise self.failure
        self.log_dict({"train/elbo_step": -123.456, "train/kl_step": 7.0, "train/rec": -116.456})
        return self.layer(batch[0].x).mean()

    def steps(self):
        return 4 * self.trainer.max_epochs

    def validation_step(self, batch, batch_idx):
        self.log("val/elbo", -130.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(console, failure=None, epochs=3):
    callback = Progress(console)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(Lit(failure), Feed(), Feed())
    finally:
        assert callback._bar is None


def terminal(width=160):
    return Console(file=StringIO(), force_terminal=True, width=width, color_system=None)


def last_line(console):
    return console.file.getvalue().split("\n")[0].split("\r")[-1]


def test_silent_without_a_terminal():
    console = Console(file=StringIO(), force_terminal=False)
    fit(console)
    assert console.file.getvalue() == ""


def test_final_line_tells_everything(monkeypatch):
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    console = terminal()
    fit(console)
    line = last_line(console)
    for part in ("epoch 3/3", "ELBO -123.5", "KL 7.00", "rec -116.5", "val -130.0", "images/s", "00:00<00:00"):
        assert part in line
    text = console.file.getvalue()
    assert "epoch 1/3" in text and "epoch 2/3" in text
    assert text.count("\n") == 1 and text.endswith("\x1b[?25h")  # one line, and the cursor is back


def test_a_narrow_terminal_still_has_one_line():
    console = terminal(width=60)
    fit(console)
    assert console.file.getvalue().count("\n") == 1


def test_refreshes_by_time(monkeypatch):
    refreshes = []
    original = Progress._refresh
    monkeypatch.setattr(Progress, "_refresh", lambda *args: (refreshes.append(args), original(*args)))
    monkeypatch.setattr(progress, "PERIOD", 1e9)
    fit(terminal(), epochs=2)
    assert len(refreshes) == 2  # after the first step and at the end


@pytest.mark.parametrize(("failure", "seen"), [(ValueError("no"), ValueError), (KeyboardInterrupt(), SystemExit)])
def test_stops_on_exceptions(failure, seen):
    console = terminal()
    with pytest.raises(seen):
        fit(console, failure)
    assert "epoch 1/3" in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[?25h")
