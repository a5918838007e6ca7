"""A run: its identity, its record, its folder, and how to get the model back from that.

Only what gives back objects needs torch, which is imported on first use.
"""

from typing import TYPE_CHECKING

from vae_lab.runs.files import (
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    HISTORY,
    LOG,
    METRICS,
    PACKAGES,
    Config,
    environment,
    finite,
    flat,
    read_config,
    rows,
    write,
)

if TYPE_CHECKING:
    from vae_lab.runs.folder import build, load, load_data, load_objective

__all__ = [
    "CONFIG",
    "ENVIRONMENT",
    "EVALUATION",
    "HISTORY",
    "LOG",
    "METRICS",
    "PACKAGES",
    "Config",
    "build",
    "environment",
    "finite",
    "flat",
    "load",
    "load_data",
    "load_objective",
    "read_config",
    "rows",
    "write",
]


def __getattr__(name: str) -> object:
    if name in ("build", "load", "load_data", "load_objective"):
        from vae_lab.runs import folder

        return getattr(folder, name)
    raise AttributeError(f"module 'vae_lab.runs' has no attribute {name!r}")
