"""One line that says how a fit goes."""

import sys
from collections.abc import Iterable
from datetime import timedelta
from time import perf_counter

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from torch import Tensor

from vae_lab.interfaces import Batch

PERIOD = 0.2  # seconds between refreshes: a fit pays for five a second, however many steps it takes
SHOWN = (("ELBO", "train/elbo"), ("KL", "train/kl"), ("rec", "train/rec"))


class Progress(pl.Callback):
    """How many steps are done, epoch, time, ELBO, KL, reconstruction and images a second, on one line of a terminal.

    For a LitVAE, whose every training step takes a block of batches. Says nothing where the console is no terminal (a
    log file, a sweep's job), or on any but the first process.

    Args:
        console: where to print; by default standard output
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._bar: Bar | None = None
        self._images = 0  # since the clock started
        self._since: float | None = None  # when the clock started
        self._due = 0.0  # when to refresh next

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        console = self.console or Console()
        if not (console.is_terminal and trainer.is_global_zero):
            return
        self._bar = Bar(
            BarColumn(bar_width=12),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            console=console,
            auto_refresh=False,  # no thread: refreshed from on_train_batch_end
        )
        steps: int = pl_module.steps()  # type: ignore[operator]
        self._bar.add_task("", total=None if steps == sys.maxsize else steps, completed=trainer.global_step)
        self._bar.start()
        self._since, self._due = None, 0.0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Iterable[Batch],
        batch_idx: int,
    ) -> None:
        if self._bar is None:
            return
        self._images += sum(len(b.x) for b in batch)
        if perf_counter() >= self._due:
            self._refresh(self._bar, trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._refresh(self._bar, trainer)
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def _refresh(self, bar: Bar, trainer: pl.Trainer) -> None:
        now = perf_counter()
        if self._since is None:  # the clock starts after the first step: warming up is not part of the rate
            self._since, self._images = now, 0
        bar.update(bar.task_ids[0], completed=trainer.global_step)
        e, E = trainer.current_epoch + 1, trainer.max_epochs or -1
        # the most wanted first: a narrow terminal cuts the end off
        parts = [f"epoch {min(e, E)}/{E}" if E > 0 else f"epoch {e}", _times(bar.tasks[0])]  # e is E + 1 at the end
        metrics = trainer.callback_metrics
        for name, key in SHOWN:
            value = metrics.get(f"{key}_step", metrics.get(key))
            if value is not None:
                parts.append(f"{name} {_short(value)}")
        if now > self._since:
            parts.append(f"{self._images / (now - self._since):,.0f} images/s")
        if (held_out := metrics.get("val/elbo")) is not None:
            parts.append(f"val {_short(held_out)}")
        bar.update(bar.task_ids[0], description="  ".join(parts), refresh=True)
        self._due = perf_counter() + PERIOD

    def _stop(self) -> None:
        """Leaves the line as it is and gives the cursor back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _short(value: Tensor) -> str:
    return f"{value:.{1 if abs(value) >= 100 else 2}f}"


def _times(task: Task) -> str:
    """Elapsed and, once it can be told, remaining."""
    seconds = [s for s in (task.elapsed, task.time_remaining) if s is not None]
    return "<".join(str(timedelta(seconds=int(s))).removeprefix("0:") for s in seconds)
