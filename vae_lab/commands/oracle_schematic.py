"""`vae-lab oracle schematic run=...`: the note's Figure 1, drawn from a run's own configuration."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vae_lab import diagrams, runs
from vae_lab.commands.tables import paths_list
from vae_lab.interfaces import Decoder, Encoder, Likelihood, Prior
from vae_lab.vae import VAE

PICTURE = "schematic"


def run(cfg: DictConfig) -> float | None:
    """Draws `schematic.svg` and `schematic.png` in the run's folder. Its weights are not needed.

    Raises:
        ValueError: for a folder that holds no run.
    """
    if OmegaConf.is_missing(cfg, "run"):
        raise ValueError("run must be a run's folder: oracle schematic run=outputs/...")
    folder, packages = Path(cfg.run), list(cfg.packages)
    config = runs.read_config(folder)
    vae = VAE(
        runs.build(config, "encoder", Encoder, packages),
        runs.build(config, "decoder", Decoder, packages),
        runs.build(config, "likelihood", Likelihood, packages),
        runs.build(config, "prior", Prior, packages),
    )
    figure = diagrams.schematic(vae, runs.load_objective(folder, packages))
    places = {kind: folder / f"{PICTURE}.{kind}" for kind in ("svg", "png")}
    for place in places.values():
        figure.savefig(place)
    paths_list({kind: str(place) for kind, place in places.items()}, Console())
    return None
