"""`vae-lab oracle naive_mc`: what log p(x) by draws from the prior (1) costs as d grows, where it is known exactly."""

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vae_lab import decoders, diagrams, encoders, likelihoods, priors, runs
from vae_lab.checks import whole
from vae_lab.commands.common import blame, build, quieten
from vae_lab.commands.oracle_ppca import with_weights
from vae_lab.commands.tables import paths_list, shown
from vae_lab.data.module import InMemory
from vae_lab.evaluation.estimators import naive_mc
from vae_lab.interfaces import Batch
from vae_lab.oracles import PPCA, LinearGaussian
from vae_lab.seeds import generator
from vae_lab.vae import VAE

RESULT, PICTURE = "naive_mc.json", "naive_mc"


def run(cfg: DictConfig) -> float | None:
    """Measures each d, prints and draws the results and keeps them.

    Raises:
        ValueError: for a mistake in the configuration or the data.
    """
    folder = Path(cfg.paths.run)
    try:
        quieten()
        ds = list(cfg.ds) if isinstance(cfg.ds, ListConfig) else [cfg.ds]
        ds, m, n = sorted(whole("ds", d) for d in ds), whole("m", cfg.m, least=2), whole("n", cfg.n, least=2)
        data = InMemory(build(cfg, "data"), build(cfg, "preprocessing"), build(cfg, "sampling"), cfg.seed)
        try:
            data.setup("fit")
        except ValueError as error:
            raise ValueError(blame(cfg, "data", str(error))) from error
        train, test = (data.feed(split).rows.x for split in ("train", "test"))
        ppca, x = PPCA.of(train), (test if len(test) else train)[:n].double()
        rows = [measure(ppca, x, d, m, generator("cpu", cfg.seed, "naive_mc", d)) for d in ds]
    except Exception:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Hydra made it; only an empty one goes
        raise
    factor = growth(rows)
    name = cfg.data._target_.rpartition(".")[2]
    runs.write(folder / RESULT, {"data": name, "m": m, "n": len(x), "growth": factor, "rows": rows})
    for kind in ("png", "svg"):
        diagrams.naive_mc(rows, m, f"{name}: linear models at their best $s^2$").savefig(folder / f"{PICTURE}.{kind}")
    tell(folder, name, rows, m, factor)
    return factor


def measure(ppca: PPCA, x: Float[Tensor, "n *shape"], d: int, m: int, noise: torch.Generator) -> dict[str, Any]:
    """Naive Monte-Carlo of x under the best model of d dimensions, beside what is known of it."""
    s2, shape = ppca.best_s2(d), list(x.shape[1:])
    parts = encoders.Linear(shape, d), decoders.Linear(shape, d), likelihoods.Gaussian(shape, s2)
    vae = with_weights(VAE(*parts, priors.StandardNormal(d)), ppca, s2)
    model, exact = LinearGaussian(*ppca.decoder(d, s2), s2), ppca.log_prob(x, d, s2)
    cv2 = model.cv2(x.flatten(1))
    found = naive_mc(vae, Batch(x, torch.arange(len(x))), m, noise)
    off = found.log_p - exact
    return {
        "d": d,
        "s2": s2,
        "cv2": cv2.median().item(),
        "cv2_quartiles": cv2.quantile(torch.tensor([0.25, 0.75], dtype=cv2.dtype)).tolist(),
        "expected": (cv2 / m).sqrt().median().item(),  # of log p, where it is small
        "measured": off.abs().median().item() / HALF,
        "bias": off.mean().item(),
        "ess": found.ess.median().item(),
    }


HALF = 0.6744897501960817
"""The median of |N(0, 1)|: by this a median of |errors| becomes a standard error."""


def growth(rows: list[dict[str, Any]]) -> float | None:
    """The factor by which each further dimension multiplies the draws that are needed: the slope of log CV^2."""
    if len(rows) < 2:
        return None
    d = torch.tensor([float(row["d"]) for row in rows], dtype=torch.float64)
    y = torch.tensor([math.log10(row["cv2"]) for row in rows], dtype=torch.float64)
    d = d - d.mean()
    return 10 ** (d @ y / (d @ d)).item()


def tell(folder: Path, name: str, rows: list[dict[str, Any]], m: int, factor: float | None) -> None:
    """Prints a row for each d, and where everything is."""
    console = Console()
    table = Table(
        box=None, pad_edge=False, title=f"{name}: log p(x) by m={m} draws from the prior", title_justify="left"
    )
    for column in ("d", "best s2", "draws for an error of 1 nat", "expected error", "measured", "mean error", "ESS"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["d"]),
            f"{row['s2']:.4g}",
            f"{row['cv2']:,.0f}" if row["cv2"] < 1e7 else f"{row['cv2']:.1e}",
            f"{row['expected']:.3f}" if row["expected"] < 1 else "not reached",
            f"{row['measured']:.3f}",
            f"{row['bias']:.3f}",
            f"{row['ess']:.1f}",
        )
    console.print(table)
    if factor is not None:
        console.print(f"each further latent dimension needs {factor:.1f} times the draws", highlight=False)
    here = shown(folder)
    paths_list({"results": str(here / RESULT), "picture": f"{here / PICTURE}.png"}, console)
