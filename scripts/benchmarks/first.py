"""A callback that notes when the first optimiser step has been made."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class First(pl.Callback):
    """Writes the time into a file. For runs with `sampling.block=1`, as callbacks are called once a block."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *given: Any) -> None:  # noqa: ANN401
        if not self.file.exists():
            self.file.write_text(str(time.time()))
