"""Weights & Biases: Lightning's logger, and whether it keeps artifacts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import wandb
from pytorch_lightning.loggers import WandbLogger

from vae_lab.checks import flag


@final
class WandB(WandbLogger):
    """Lightning's logger with the arguments that a run of this lab has, and one more.

    Args:
        project, entity, name, id, group, job_type, tags, notes, resume, settings: see `wandb.init`
        save_dir: the folder of all runs, so that one folder `wandb` in it is what `wandb leet` and `wandb sync` take
        offline: nothing is sent; `wandb sync` uploads it later
        log_artifacts: whether a run that has finished keeps its best checkpoint and its report as artifacts
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        name: str | None,
        id: str | None,
        group: str | None,
        job_type: str | None,
        tags: Sequence[str],
        notes: str | None,
        resume: str | None,
        save_dir: str | Path,
        offline: bool,
        log_artifacts: bool,
        settings: wandb.Settings | None,
    ) -> None:
        super().__init__(
            project=project,
            entity=entity,
            name=name,
            id=id,
            group=group,
            job_type=job_type,
            tags=[str(tag)[:64] for tag in tags],  # W&B's own limit
            notes=notes,
            resume=resume,
            save_dir=Path(save_dir).absolute(),  # the process that writes there may have begun elsewhere
            offline=offline,
            settings=settings,
        )
        self.log_artifacts = flag("log_artifacts", log_artifacts)

    def begin_with(self, config: Mapping[str, Any]) -> None:
        """Has the run, which has yet to begin, hold its configuration in its first record: there `wandb leet` looks."""
        self._wandb_init["config"] = dict(config)
