"""A run's own record of what it logged, whatever the logger."""

import json
import os
from math import isfinite
from pathlib import Path
from typing import final

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vae_lab.runs.files import rows


@final
class History(Logger):
    """Every row that any logger gets, as a line of JSON in `path`: `{"step": 130, "val/elbo": -12.3, ...}`.

    A row is in the file as soon as it is logged, where W&B's own file holds up to 32 KiB back and loses them if the
    process is killed. A run that continues from a checkpoint first drops the rows logged after it, and half a row at
    the end, so that every step is there once.

    Args:
        path: of the file; rows of an earlier run are dropped when the first is logged, unless `resume` keeps them
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.path = Path(path)
        self._kept: int | None = -1  # the last step whose rows stay; None once the others are gone

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> str:
        return ""

    def resume(self, step: int) -> None:
        """Keeps the rows up to `step`, where the run continues; those of a test are logged again at its end."""
        self._kept = step

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._kept is not None:
            self._trim(self._kept)
            self._kept = None
        numbers = {name: float(value) for name, value in metrics.items()}
        row = {"step": step} | {name: v if isfinite(v) else None for name, v in numbers.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Nothing: they are in the run's config.yaml."""

    def _trim(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in rows(self.path) if row["step"] <= step and not any(k.startswith("test/") for k in row)]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, self.path)


def latest(path: Path | str) -> dict[str, float | None]:
    """The last value of each metric in a history's file."""
    return {name: value for row in rows(path) for name, value in row.items() if name != "step"}
