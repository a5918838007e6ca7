"""What a job finds imported, for `vae_lab.launch.warm`: the server imports this module, and does nothing else."""

from contextlib import suppress
from importlib import import_module

from vae_lab import garbage

MODULES = (
    "wandb.sdk.launch.inputs.internal",  # of `wandb.init`; the fewer modules there are, the sooner: so before torch
    "vae_lab.application",
    "vae_lab.commands.train",
    "vae_lab.commands.training",
    "vae_lab.decoders",
    "vae_lab.launch.pool",
    "vae_lab.likelihoods",
    "vae_lab.priors",
    "vae_lab.schedules",
    "sklearn.datasets",
)

with garbage.spared():
    for module in MODULES:
        with suppress(ImportError):  # the job says what is missing
            import_module(module)
