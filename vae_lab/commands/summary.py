"""A finished run's W&B summary, to which later results are added."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from vae_lab import runs


def add_to_summary(folder: Path, values: Mapping[str, Any]) -> str | None:
    """Adds `values` to the summary of the W&B run in `folder`, if there is one: online for a run that was online, else
    in a further offline folder of the same id beside the first. `wandb sync` of both makes one run of them.

    Returns:
        what went wrong, in one line, or None
    """
    files = sorted(folder.glob("wandb/*run-*/run-*.wandb"))
    if not files:
        return None
    online = any(file.parent.name.startswith("run-") for file in files)
    logger = runs.read_config(folder).get("logger") or {}
    try:
        wandb.setup(wandb.Settings(silent=True))
        with wandb.init(
            id=files[0].stem.removeprefix("run-"),
            project=logger.get("project"),
            entity=logger.get("entity"),
            dir=str(folder),
            resume="allow",
            mode="online" if online else "offline",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
        ) as run:
            run.summary.update(dict(values))
    except Exception as error:  # whatever W&B raises, the results are safe in the run's folder
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None
