"""A run that is told to stop saves where it is."""

import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any, final

import pytorch_lightning as pl

from vae_lab.callbacks.checkpoint import Checkpoint, between_blocks
from vae_lab.interfaces import Batch
from vae_lab.runs.record import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@final
class Preemption(pl.Callback):
    """On SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C: saves after the present block, and ends the fit by `Preempted`.

    In validation, after it, when the epoch is whole; in the test, which has nothing to save, at once, as after a second
    Ctrl-C. A handler that was there before, as submitit's that has the job queued again, is called after the save.
    Several processes stop together, whichever got the signal. Handlers are set in the main thread only, and put back.

    (Lightning 2.6 would answer SIGTERM by exit status 0, without a checkpoint in mid-epoch, and Ctrl-C by 1.)

    Args:
        listens: whether it sets handlers; else it is to be told (`tell`), by whoever has several runs in a process
    Raises:
        Preempted: with the signal's number, out of `fit` or `test`.
    """

    def __init__(self, listens: bool = True) -> None:
        self.listens = listens
        self._before: dict[int, Any] = {}  # the handlers before Lightning's
        self._signal: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._signal = None
        if self.listens and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def tell(self, number: int) -> None:
        """The process has got the signal `number`."""
        self._signal = number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._set(self._note)
        if trainer.received_sigterm:  # a moment ago
            self._signal = signal.SIGTERM

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Iterable[Batch],
        batch_idx: int,
    ) -> None:
        if between_blocks(trainer, batch_idx):
            self._leave(trainer, lambda checkpoint: checkpoint.save(trainer))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(trainer, lambda checkpoint: checkpoint.save_epochs(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(trainer, lambda checkpoint: checkpoint.on_train_end(trainer, pl_module))
        self._restore()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._set(self._stop)
        if trainer.received_sigterm:
            self._stop(signal.SIGTERM, None)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: object) -> None:
        if self._signal == number == signal.SIGINT:
            self._stop(number, frame)
        self._signal = number

    def _leave(self, trainer: pl.Trainer, save: Callable[[Checkpoint], None]) -> None:
        """Saves and raises, if any process was told to stop."""
        told = self._signal is not None
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        if not told:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint):
                save(callback)
        self._stop(self._signal or signal.SIGTERM, None)

    def _stop(self, number: int, frame: object) -> None:
        before = self._before.get(number)
        self._restore()
        if number != signal.SIGINT and callable(before):  # Python's own for SIGINT would raise KeyboardInterrupt
            before(number, frame)
        raise Preempted(number)

    def _set(self, handler: Callable[[int, object], None]) -> None:
        for number in self._before:
            signal.signal(number, handler)  # over Lightning's, which would have the process end with 0

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
