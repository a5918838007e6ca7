"""q(z | x) fitted to each datum by itself, as in (6), for data that a model has not been trained on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import SparseAdam
from torch.optim.lr_scheduler import CosineAnnealingLR

from vae_lab.checks import number, whole
from vae_lab.distributions import DiagonalNormal
from vae_lab.encoders import Free
from vae_lab.interfaces import Batch, Encoder, Prior
from vae_lab.objectives import Elbo
from vae_lab.vae import VAE

CHUNK = 4096
"""How many samples of z are decoded at a time: bounds the memory."""


def refine(
    vae: VAE,
    x: Float[Tensor, "n *shape"],
    steps: int,
    lr: float,
    V: int = 1,
    label: Int[Tensor, " n"] | None = None,
    generator: torch.Generator | None = None,
) -> Free:
    """The diagonal normals q(z | phi_i) that maximise the ELBO (6) of the data x, the model being what it is.

    By Adam from the encoder's own diagonal normal where it has one, else from the prior's mean and sigma = 1. The model
    is neither changed nor given gradients; this may be called in any mode of autograd, also by Lightning.

    Args:
        vae: the model
        x: the data
        steps: of Adam, for each datum
        lr: of the first step; it falls to 0 along half a cosine
        V: samples of z for each datum in each step (19)
        label: of the data, for a conditional model
        generator: of the noise, on x's device
    Returns:
        an encoder over these data, whose indices are 0 .. n - 1; `with_encoder` puts it into the model
    Raises:
        ValueError: for a wrong `steps`, `lr` or `V`.
    """
    whole("steps", steps)
    number("lr", lr, above=0)
    objective, parts = Elbo(V), []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(vae):
        x, label = x.clone(), None if label is None else label.clone()  # normal tensors, whatever they were
        for i in torch.arange(len(x), device=x.device).split(max(1, CHUNK // V)):
            batch = Batch(x[i], torch.arange(len(i), device=x.device), None if label is None else label[i])
            free = table(start(vae, batch), vae, steps, lr)
            refined, phi = with_encoder(vae, free), free.phi.weight
            optimizer = SparseAdam([phi], lr)
            schedule = CosineAnnealingLR(optimizer, steps)
            for _ in range(steps):
                eps = torch.randn(V, len(i), vae.d, generator=generator, device=x.device, dtype=x.dtype)
                optimizer.zero_grad()
                # (6)  the sum over data: each phi_i has the gradient of its own datum
                objective(refined, batch, eps).loss.sum().backward(inputs=[phi])
                optimizer.step()
                schedule.step()
            parts.append(phi.detach())
        return table(torch.cat(parts), vae, steps, lr)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each part then goes back to the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def start(vae: VAE, batch: Batch) -> Float[Tensor, "B two_d"]:
    """mu and log sigma that refinement begins with."""
    with torch.no_grad():
        q = vae.encoder(batch) if vae.encoder.amortised else None
        if not isinstance(q, DiagonalNormal):
            mu = vae.p_z().mean.expand(len(batch.x), vae.d)
            q = DiagonalNormal(mu, torch.ones_like(mu))
        return torch.cat([q.mu, q.sigma.log()], -1)


def table(phi: Float[Tensor, "n two_d"], vae: VAE, steps: int, lr: float) -> Free:
    """The encoder that holds phi, and draws no random number for it."""
    with torch.device("meta"):
        free = Free(vae.shape, vae.d, len(phi), lr, steps)
    free.phi.weight = nn.Parameter(phi)
    return free


def with_encoder(vae: VAE, encoder: Encoder) -> VAE:
    """The model with another encoder, and the same p(z) and p(x | z): parts are shared, not copied."""
    return VAE(encoder, vae.decoder, vae.likelihood, Kept(vae.prior, vae.encoder))


@final
class Kept(Prior):
    """A prior that stays what it was if the model's encoder is replaced.

    Args:
        prior: the prior
        encoder: the one that it is made from
    """

    def __init__(self, prior: Prior, encoder: Encoder) -> None:
        super().__init__()
        self.d, self.prior, self.encoder = prior.d, prior, encoder

    def forward(self, encoder: Encoder) -> Distribution:
        return self.prior(self.encoder)


def fitted(vae: VAE, batch: Batch, generator: torch.Generator | None = None) -> tuple[VAE, Batch]:
    """A model whose encoder knows the data of a batch, and the batch by the indices that it knows them under.

    These are the two themselves where the encoder is amortised (7). Otherwise the data are refined with the encoder's
    own `lr` and `steps`, be they training data or not: so that all data are scored in the same way.

    Args:
        generator: of the refinement's noise, on the batch's device
    """
    if vae.encoder.amortised:
        return vae, batch
    encoder = refine(vae, batch.x, vae.encoder.steps, vae.encoder.lr, label=batch.label, generator=generator)
    index = torch.arange(len(batch.x), device=batch.x.device)
    return with_encoder(vae, encoder), batch._replace(index=index)
