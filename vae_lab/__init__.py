"""vae_lab: a lab bench for understanding variational autoencoders."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae_lab import report
    from vae_lab.runs import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "report"]


def __getattr__(name: str) -> object:
    """What is imported on first use, so that the command line can answer without torch."""
    if name == "load":
        from vae_lab.runs import load

        return load
    if name == "report":
        return importlib.import_module("vae_lab.report")
    raise AttributeError(f"module 'vae_lab' has no attribute {name!r}")
