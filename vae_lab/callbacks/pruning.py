"""A run that is a trial of a study: what it reports, and how it is ended."""

from pathlib import Path
from typing import TYPE_CHECKING, final

import pytorch_lightning as pl

from vae_lab.callbacks.checkpoint import Checkpoint
from vae_lab.runs.record import Pruned

if TYPE_CHECKING:
    import optuna

METRIC = "val/elbo"


@final
class Pruning(pl.Callback):
    """Reports val/elbo to a trial of a study after each epoch, and ends the run where the study's pruner says so.

    Study and run are in different processes, often of different hosts: they meet in the study's journal. A run that is
    ended is saved first, and partial: the same command, or another trial, trains it to its end. Where the trial is no
    longer running, as its study was interrupted, nothing is reported.

    Args:
        journal: the study's, a file
        study, trial: the study's name, and the trial's number
        pruner: median (Optuna's MedianPruner) or hyperband (over the run's epochs)
    Raises:
        Pruned: before the next epoch.
    """

    def __init__(self, journal: Path | str, study: str, trial: int, pruner: str) -> None:
        self.journal, self.study, self.number, self.pruner = str(journal), study, trial, pruner
        self.trial: optuna.Trial | None = None
        self.pruned = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(
            study_name=self.study,
            storage=JournalStorage(JournalFileBackend(self.journal)),
            pruner=make_pruner(self.pruner, trainer.max_epochs),
        )
        known = study.get_trials(deepcopy=False)[self.number]
        if known.state == optuna.trial.TrialState.RUNNING:
            self.trial = optuna.Trial(study, known._trial_id)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.trial is not None and not trainer.sanity_checking:
            self.trial.report(trainer.callback_metrics[METRIC].item(), trainer.current_epoch + 1)
            self.pruned = self.trial.should_prune()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.strategy.broadcast(self.pruned):
            return
        value = None
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint):
                callback.save_epochs(trainer)
                value = callback.best_model_score
        if self.trial is not None:
            self.trial.set_user_attr("pruned", trainer.current_epoch)  # epochs done
        raise Pruned(f"pruned after {trainer.current_epoch} epochs, as trial {self.number} of {self.study}", value)


def make_pruner(name: str, epochs: int | None) -> "optuna.pruners.BasePruner":
    """The pruner called `name`, for runs of so many epochs (None or -1: as many as the longest one has had)."""
    from optuna.pruners import HyperbandPruner, MedianPruner

    if name == "hyperband":
        return HyperbandPruner(max_resource=epochs if epochs is not None and epochs > 0 else "auto")
    return MedianPruner()
