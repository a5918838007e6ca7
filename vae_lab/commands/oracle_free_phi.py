"""`vae-lab oracle free_phi`: phi_i for each datum (6) beside an encoder (7), and the drawbacks of the first."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch.optim import Adam

from vae_lab import runs
from vae_lab.commands.common import build, quieten
from vae_lab.commands.tables import paths_list, results_table, shown
from vae_lab.data.module import InMemory
from vae_lab.data.preprocessing import Raw
from vae_lab.data.sampling import Shuffled, WithReplacement
from vae_lab.decoders import MLP as Decoder
from vae_lab.encoders import MLP, Free
from vae_lab.evaluation.drawbacks import refit_time, untouched
from vae_lab.evaluation.refinement import fitted, refine, with_encoder
from vae_lab.interfaces import Batch, Encoder
from vae_lab.lit import LitVAE
from vae_lab.objectives import Elbo
from vae_lab.priors import StandardNormal
from vae_lab.schedules import Constant
from vae_lab.seeds import generator
from vae_lab.vae import VAE

RESULT = "free_phi.json"
EPOCHS, HIDDEN, STEPS, V = 30, [256, 256], 300, 100


def run(cfg: DictConfig) -> None:
    """Trains both on the data for as long, measures both drawbacks, prints them and keeps them.

    Raises:
        ValueError: for a mistake in the configuration or the data.
    """
    quieten()
    data = InMemory(build(cfg, "data"), Raw(), Shuffled(100, 250, 10), cfg.seed)
    data.setup("fit")
    test = whole_split(data, "test")
    found: dict[str, Any] = {"n": data.n, "epochs": EPOCHS, "steps": STEPS}

    torch.manual_seed(cfg.seed)
    amortised = make_vae(cfg, data, MLP(data.source.shape, cfg.d, HIDDEN, "relu"))
    found["amortised_train"] = train(amortised, data, cfg.seed)
    torch.manual_seed(cfg.seed)
    free = make_vae(cfg, data, Free(data.source.shape, cfg.d, data.n, lr=0.2, steps=STEPS))
    found["free_train"] = train(free, data, cfg.seed)
    noise = generator("cpu", cfg.seed, "free_phi")
    found["amortised_test"], found["free_test"] = (mean(elbo(vae, test, noise)) for vae in (amortised, free))

    # the first drawback
    for sampling in (WithReplacement(100, 250, 10), Shuffled(100, 250, 10)):
        found[f"untouched_{type(sampling).__name__}"] = untouched(data.n, sampling, noise)
    found["untouched_theory"] = (1 - 1 / data.n) ** data.n
    # the second
    found["refit_seconds"], found["forward_seconds"] = refit_time(amortised, test.x[:1], STEPS)
    # (7-8)  what the encoder loses to a phi_i of each datum's own, Theta and noise being the same
    own = with_encoder(amortised, refine(amortised, test.x, STEPS, lr=0.1, V=10, generator=noise))
    gain = elbo(own, test, generator("cpu", cfg.seed, "gap")) - elbo(amortised, test, generator("cpu", cfg.seed, "gap"))
    found["gap"], found["gap_se"] = mean(gain), (gain.std() / len(gain) ** 0.5).item()

    runs.write(Path(cfg.paths.run) / RESULT, found)
    tell(Path(cfg.paths.run), found)


def make_vae(cfg: DictConfig, data: InMemory, encoder: Encoder) -> VAE:
    """The model with a perceptron as decoder."""
    likelihood = build(cfg, "likelihood")
    decoder = Decoder(data.source.shape, cfg.d, HIDDEN, "relu", likelihood.outputs)
    return VAE(encoder, decoder, likelihood, StandardNormal(cfg.d))


def train(vae: VAE, data: InMemory, seed: int) -> float:
    """Trains for EPOCHS; the last epoch's ELBO on the training data."""
    lit = LitVAE(vae, Elbo(1), lambda parameters: Adam(parameters, 1e-3), Constant(), seed)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(lit, datamodule=data)
    vae.eval()
    return float(trainer.callback_metrics["train/elbo"])


def whole_split(data: InMemory, split: str) -> Batch:
    """All data of a split as one batch."""
    x = torch.cat([batch.x for batch in data.feed(split)])
    return Batch(x, torch.arange(len(x)))


@torch.no_grad()
def elbo(vae: VAE, batch: Batch, noise: torch.Generator) -> torch.Tensor:
    """The ELBO of each datum by V samples; data without a phi_i are refined first."""
    vae, batch = fitted(vae, batch, noise)
    return Elbo(V)(vae, batch, torch.randn(V, len(batch.x), vae.d, generator=noise)).elbo


def mean(values: torch.Tensor) -> float:
    """Their mean, as a number."""
    return values.mean().item()


def tell(folder: Path, found: dict[str, Any]) -> None:
    """Prints what was measured and where it is."""
    console = Console()
    ratio = found["refit_seconds"] / found["forward_seconds"]
    rows = {
        "ELBO train": f"{found['free_train']:.2f} with phi_i, {found['amortised_train']:.2f} with an encoder",
        "ELBO test": f"{found['free_test']:.2f} with phi_i, {found['amortised_test']:.2f} with an encoder",
        "1. phi_i untouched": f"{found['untouched_WithReplacement']:.1%} after n draws with replacement "
        f"(theory {found['untouched_theory']:.1%}), {found['untouched_Shuffled']:.1%} after a shuffled epoch",
        "2. a new datum": f"{1e3 * found['refit_seconds']:.0f} ms to fit phi in {found['steps']} steps, "
        f"{1e3 * found['forward_seconds']:.2f} ms for the encoder: {ratio:.0f} times",
        "what amortisation costs": f"{found['gap']:.2f} ± {found['gap_se']:.2f} of test ELBO, Theta being the same",
    }
    title = f"phi_i for each of n={found['n']} data, or an encoder, after {found['epochs']} epochs: nats per datapoint"
    results_table(title, rows, console)
    paths_list({"written": str(shown(folder) / RESULT)}, console)
