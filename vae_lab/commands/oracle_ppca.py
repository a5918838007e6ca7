"""`vae-lab oracle ppca`: the best linear VAE of the data, exactly: what it reaches, and its weights as a run."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from vae_lab import decoders, encoders, likelihoods, priors, runs
from vae_lab.commands.common import blame, build, quieten
from vae_lab.commands.tables import paths_list, results_table, shown
from vae_lab.commands.training import build_vae
from vae_lab.data.module import InMemory
from vae_lab.interfaces import Batch
from vae_lab.objectives import Elbo
from vae_lab.oracles import PPCA
from vae_lab.vae import VAE

RESULT = "ppca.json"
PARTS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "encoder": ("linear", encoders.Linear),
    "decoder": ("linear", decoders.Linear),
    "likelihood": ("gaussian or gaussian_optimal", (likelihoods.Gaussian, likelihoods.GaussianOptimal)),
    "prior": ("standard_normal", priors.StandardNormal),
}
"""What the model must be made of."""


def run(cfg: DictConfig) -> float | None:
    """Finds the optimum from the data's covariance, prints it and leaves it as a run; the value is its train log p.

    Raises:
        ValueError: for parts that are not PPCA's, or a mistake in the configuration or the data.
    """
    folder = Path(cfg.paths.run)
    try:
        vae, data, s2 = assemble(cfg)
        x, x_test = (data.feed(split).rows.x for split in ("train", "test"))
        ppca = PPCA.of(x)
        s2 = ppca.best_s2(cfg.d) if s2 is None else s2
        vae = with_weights(vae, ppca, s2)
    except Exception:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Hydra made it; only an empty one goes
        raise
    found = answers(ppca, x_test, cfg.d, s2)
    found["largest_gap"] = gap(vae, x, ppca, s2)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    runs.write(folder / runs.CONFIG, config)
    runs.write(folder / runs.ENVIRONMENT, runs.environment(HydraConfig.get().overrides.task))
    runs.write(folder / RESULT, found)
    checkpoint = folder / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {f"vae.{name}": value for name, value in vae.state_dict().items()}}, checkpoint)
    tell(folder, cfg, found)
    return found["log_p"]


def assemble(cfg: DictConfig) -> tuple[VAE, InMemory, float | None]:
    """The model, the data, and s2 where it is given; refuses parts that are not PPCA's before the data load."""
    quieten()
    vae = build_vae(cfg)
    for name, (option, kinds) in PARTS.items():
        if not isinstance(getattr(vae, name), kinds):
            got = OmegaConf.select(cfg, name)._target_
            raise ValueError(f"{name} must be {option}: only that model's optimum is probabilistic PCA, got {got}")
    if cfg.classes:
        raise ValueError(f"classes must be 0: probabilistic PCA sees no labels, got {cfg.classes}")
    build(cfg, "objective")  # not used here, but the run is to be evaluated with it
    data = InMemory(build(cfg, "data"), build(cfg, "preprocessing"), build(cfg, "sampling"), cfg.seed)
    try:
        data.setup("fit")
    except ValueError as error:
        raise ValueError(blame(cfg, "data", str(error))) from error
    return vae, data, cfg.likelihood.get("s2")


def with_weights(vae: VAE, ppca: PPCA, s2: float) -> VAE:
    """`vae`, in float64, at the optimum: f(z) = W z + b, and q(z | x) = p(z | x)."""
    (W, b), (A, a, sigma) = ppca.decoder(vae.d, s2), ppca.encoder(vae.d, s2)
    weights = {"decoder.f.weight": W, "decoder.f.bias": b, "encoder.mu.weight": A, "encoder.mu.bias": a}
    vae = vae.double()
    weights |= {"encoder.log_sigma": sigma.log(), "likelihood.s2": W.new_tensor(s2)}
    if isinstance(vae.likelihood, likelihoods.GaussianOptimal):
        weights["likelihood.weight"] = W.new_ones(())  # its s2 is no longer a beginning
    vae.load_state_dict(weights)
    return vae.eval()


def answers(ppca: PPCA, x_test: Float[Tensor, "N *shape"], d: int, s2: float) -> dict[str, Any]:
    """What the optimum reaches at this s2, and at the best one; in nats per datapoint."""
    found: dict[str, Any] = {"d": d, "s2": s2, "log_p": ppca.log_p(d, s2)}
    if len(x_test):
        log_p = ppca.log_prob(x_test, d, s2)
        found |= {"log_p_test": log_p.mean().item(), "log_p_test_se": (log_p.std() / len(log_p) ** 0.5).item()}
    found |= {
        "rate": ppca.rate(d, s2),
        "distortion": ppca.distortion(d, s2),
        "k": ppca.k(d, s2),
        "eigenvalues_above_s2": int((ppca.eigenvalues > s2).sum()),
        "active_units": ppca.active_units(d, s2),
    }
    try:
        best = ppca.best_s2(d)
    except ValueError:  # d dimensions hold all of the data: the likelihood has no maximum
        return found | {"best_s2": None}
    found |= {"best_s2": best, "best_log_p": ppca.log_p(d, best)}
    return found | ({"best_log_p_test": ppca.log_prob(x_test, d, best).mean().item()} if len(x_test) else {})


@torch.no_grad()
def gap(vae: VAE, x: Float[Tensor, "N *shape"], ppca: PPCA, s2: float) -> float:
    """The largest |ELBO - log p| of the model over a few data. Its noise +-sqrt(d) e_j has the mean and covariance of
    N(0, I), and so averages a linear decoder's squared errors exactly."""
    d, D = vae.d, x[0].numel()
    some = x[: max(1, min(100, 2**23 // (2 * d * D)))].double()
    points = d**0.5 * torch.eye(d, dtype=torch.float64)
    eps = torch.cat([points, -points])[:, None].expand(-1, len(some), -1)  # [2d, B, d]
    elbo = Elbo(2 * d)(vae, Batch(some, torch.arange(len(some))), eps).elbo
    return (elbo - ppca.log_prob(some, d, s2)).abs().max().item()


def tell(folder: Path, cfg: DictConfig, found: dict[str, Any]) -> None:
    """Prints the answers and where they are."""
    console = Console()
    rows = {"log p, training data": f"{found['log_p']:.3f}"}
    if "log_p_test" in found:
        rows["log p, test data"] = f"{found['log_p_test']:.3f} ± {found['log_p_test_se']:.3f}"
    rows |= {
        "rate (KL)": f"{found['rate']:.3f}",
        "distortion": f"{found['distortion']:.4f}",
        "k, dimensions used": f"{found['k']} of {found['d']}; {found['eigenvalues_above_s2']} eigenvalues are above s2",
        "active units": str(found["active_units"]),
    }
    if found["best_s2"] is None:
        rows["best s2"] = "none: d dimensions hold all of the data's variance"
    else:
        test = f" (test data {found['best_log_p_test']:.3f})" if "best_log_p_test" in found else ""
        rows["best s2"] = f"{found['best_s2']:.6g}, where log p = {found['best_log_p']:.3f}{test}"
    rows["ELBO - log p"] = f"at most {found['largest_gap']:.1e} with the weights written here, in float64"
    name = cfg.data._target_.rpartition(".")[2]
    results_table(
        f"the best linear VAE of {name}, d={found['d']} s2={found['s2']:g}: nats per datapoint", rows, console
    )
    here = shown(folder)
    places = {"run": here, "answers": here / RESULT, "weights": here / "checkpoints" / "best.ckpt"}
    paths_list({place: str(path) for place, path in places.items()}, console)
