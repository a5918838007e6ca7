"""Checkpoints from which a run goes on as if it had never stopped."""

import copy
import os
from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, final

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import CheckpointIO, TorchCheckpointIO
from torch import Tensor

from vae_lab.callbacks.history import History
from vae_lab.checks import number, one_of
from vae_lab.interfaces import Batch

PAUSE = 5.0
"""Seconds between two epochs' checkpoints at least, unless mid-epoch ones are asked for more often: a small model's
epochs are shorter than their files take, 2 ms each: 64 packed models would spend an eighth of each second on them."""


@final
class AtomicIO(CheckpointIO):
    """A checkpoint's file is the old one or the new one, whole, whenever the process or the machine dies.

    It is written in its own folder as `.<name>.<pid>.tmp`, and on the disk before it takes its name. (Lightning's own
    way is by the folder for temporary files, which may be on another file system; then a move is a copy.)
    """

    def __init__(self) -> None:
        self._io = TorchCheckpointIO()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: object = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: Path | str, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self._io.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: Path | str) -> None:
        self._io.remove_checkpoint(path)


@final
class Checkpoint(pl.callbacks.Checkpoint):
    """Keeps `last.ckpt`, from which the run continues exactly, and `best.ckpt`, that of the epoch with the best score.

    `last.ckpt` is saved after each epoch, once all that it logs is logged, and in mid-epoch between two blocks. It
    loads with `weights_only=True`. Where the score was never measured, the best is the last. Epochs that follow each
    other within PAUSE are saved together: the best is kept in memory until then.

    (Lightning's ModelCheckpoint keeps no time under manual optimisation, and saves at an epoch's end before its
    metrics are logged.)

    Args:
        folder: where the files are
        monitor: the metric that is the score; None: the best is always the last
        mode: "max" or "min": which score is better
        every_seconds: how often to save in mid-epoch
    """

    def __init__(self, folder: Path | str, monitor: str | None, mode: str, every_seconds: float) -> None:
        self.folder, self.monitor = Path(folder), monitor
        self.mode = one_of("mode", mode, ("max", "min"))
        self.every_seconds = number("every_seconds", every_seconds, above=0)
        self.last, self.best = self.folder / "last.ckpt", self.folder / "best.ckpt"
        self.best_model_score: float | None = None  # as Lightning calls it
        self.stopped = False  # whether the fit was stopped early, by a callback
        self._step = 0  # of the last checkpoint
        self._due = inf  # when to save next
        self._soon = 0.0  # when an epoch may be saved next
        # checkpoints of epochs that are yet to be written: the last one's, and the best one's
        self._late: dict[str, Any] | None = None
        self._late_best: dict[str, Any] | None = None

    @property
    def best_model_path(self) -> str:
        """What Lightning means by `ckpt_path="best"`."""
        return str(self.best) if self.best.exists() else ""

    def state_dict(self) -> dict[str, Any]:
        return {"best_model_score": self.best_model_score, "stopped": self.stopped, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_model_score, self._step = state_dict["best_model_score"], state_dict["step"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        for logger in trainer.loggers:
            if isinstance(logger, History):
                logger.resume(checkpoint["global_step"])
        # a fit that a callback stopped is not taken up again
        trainer.should_stop = checkpoint["callbacks"].get(self.state_key, {}).get("stopped", False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        epochs, blocks = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
        if epochs["current"]["started"] == epochs["current"]["completed"]:
            # Between two epochs. As it stands, Lightning would take the next one for done: it has counted it as
            # ready, and the blocks are still those of the one before
            for counts in (epochs["total"], epochs["current"]):
                counts["ready"] = counts["completed"]
            blocks["current"] = dict.fromkeys(blocks["current"], 0)
            blocks["is_last_batch"] = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            for leftover in self.folder.glob(".*.ckpt.*.tmp"):  # of a process that was killed
                leftover.unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._due = monotonic() + self.every_seconds

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Iterable[Batch],
        batch_idx: int,
    ) -> None:
        due = monotonic() >= self._due
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)
        if due and between_blocks(trainer, batch_idx):
            self.save(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._step:
            self._save_epoch(trainer, now=monotonic() >= self._soon or trainer.world_size > 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopped = trainer.should_stop
        self._save_epoch(trainer, end=True)

    def save_epochs(self, trainer: pl.Trainer) -> None:
        """Saves what the epochs so far have come to, at the beginning of another."""
        if trainer.global_step != self._step:
            self._save_epoch(trainer)
        else:
            self._write_late(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Saves `last.ckpt`; on every process at once."""
        if self._late_best is not None:
            trainer.strategy.save_checkpoint(self._late_best, self.best)
        self._step = trainer.global_step
        trainer.save_checkpoint(self.last)
        self._saved()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._write_late(trainer)

    def _write_late(self, trainer: pl.Trainer) -> None:
        if self._late is None:
            return
        if self._late_best is not None:
            trainer.strategy.save_checkpoint(self._late_best, self.best)
        if self._late is self._late_best:
            self._link()
        else:
            trainer.strategy.save_checkpoint(self._late, self.last)
        self._saved()

    def _saved(self) -> None:
        self._due, self._soon = monotonic() + self.every_seconds, monotonic() + min(PAUSE, self.every_seconds)
        self._late = self._late_best = None

    def _save_epoch(self, trainer: pl.Trainer, now: bool = True, end: bool = False) -> None:
        score = None if self.monitor is None else trainer.callback_metrics.get(self.monitor)
        if score is None:
            best = self.monitor is None or (end and self.best_model_score is None)
        else:
            sign = 1 if self.mode == "max" else -1
            best = self.best_model_score is None or sign * score.item() > sign * self.best_model_score
        if best:
            self.best_model_score = None if score is None else score.item()
        if not now:
            self._late = copied(trainer._checkpoint_connector.dump_checkpoint())
            self._late_best = self._late if best else self._late_best
            self._step = trainer.global_step
            return
        if not best:
            return self.save(trainer)
        self._step = trainer.global_step
        trainer.save_checkpoint(self.best)
        if trainer.is_global_zero:
            self._link()
        trainer.strategy.barrier()
        self._saved()

    def _link(self) -> None:
        """The last is the best: the same file under another name, after the best, as `last` says that it is there."""
        temporary = temporary_name(self.last)
        os.link(self.best, temporary)
        replace(temporary, self.last)


def copied(v: Any) -> Any:  # noqa: ANN401
    """A copy of a checkpoint, whose tensors are those that training moves; `deepcopy` takes four times as long."""
    if type(v) is Tensor:
        return v.detach().clone()
    if isinstance(v, dict):
        found = copy.copy(v)  # with what else it has: a state_dict's `_metadata`
        found.update((key, copied(value)) for key, value in v.items())
        return found
    return [*map(copied, v)] if type(v) is list else copy.deepcopy(v)


def between_blocks(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether another block comes next, after this one's end, and no validation or end of an epoch."""
    return not (
        trainer.is_last_batch
        or (batch_idx + 1) % (trainer.val_check_batch or inf) == 0
        or trainer.global_step == trainer.max_steps
        or trainer.should_stop
    )


def temporary_name(path: Path) -> Path:
    """Beside `path`, for this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def replace(temporary: Path, path: Path) -> None:
    """`temporary` takes the name `path`, for good."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
