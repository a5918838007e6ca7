"""A finished run's W&B summary, to which later results are added."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from vae_lab import runs
from vae_lab.commands.loggers import summary, typed
from vae_lab.runs import record


def add_to_summary(folder: Path, values: Mapping[str, Any]) -> str | None:
    """Adds `values` to the summary of the W&B run of the run in `folder`, if there is one. Its history stays as it is.

    Online for a run that was online. Else in a further offline folder of the same id, beside the others, which says all
    that they say but the history: name, group, tags, configuration and results. For `wandb sync` has the summary of the
    last folder replace those of the others; and each folder can be compared with other runs by itself.

    Returns:
        what went wrong, in one line, or None
    """
    if not (folders := record.wandb_folders(folder)):
        return None
    online = any(path.name.startswith("run-") for path in folders)
    known, config = record.read(folder) or {}, runs.read_config(folder)
    logger = config.get("logger") or {}
    same = {key: logger.get(key) for key in ("project", "entity", "name", "group", "job_type", "tags", "notes")}
    try:
        wandb.setup(wandb.Settings(silent=True))
        with wandb.init(
            **same,
            id=known["wandb"],
            config=None if online else typed(config) | {"fingerprint": known.get("fingerprint")},
            dir=str(folders[0].parent.parent),
            resume="allow",
            mode="online" if online else "offline",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
        ) as run:
            run.summary.update(({} if online else summary(folder)) | dict(values))
    except Exception as error:  # whatever W&B raises, the results are safe in the run's folder
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None
