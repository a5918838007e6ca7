"""The two drawbacks that the note finds in parameters phi_i for each datum (6), measured."""

from statistics import median
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SparseAdam

from vae_lab.data.sampling import Sampling
from vae_lab.decoders import Linear
from vae_lab.encoders import Free
from vae_lab.evaluation.refinement import refine
from vae_lab.interfaces import Batch
from vae_lab.likelihoods import Gaussian
from vae_lab.objectives import Elbo
from vae_lab.priors import StandardNormal
from vae_lab.vae import VAE


def untouched(n: int, sampling: Sampling, generator: torch.Generator) -> float:
    """The share of n phi_i that an epoch of training leaves as they were: the first drawback.

    A table of phi_i is trained on n random numbers for one epoch, n draws, and compared with itself. In the mean
    (1 - 1/n)^n, about 1/e, where the draws are i ~ U(1, ..., n) as in (18); 0 where the data are shuffled.

    Args:
        sampling: how the epoch is drawn
        generator: of the data, the noise and the draws, on the CPU
    """
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator: put it back
        vae = VAE(Free([1], 1, n, lr=0.1, steps=1), Linear([1], 1), Gaussian([1], 1.0), StandardNormal(1))
    x, objective = torch.randn(n, 1, generator=generator), Elbo(1)
    [phi] = vae.encoder.parameters()
    optimizer, before = SparseAdam([phi], vae.encoder.lr), phi.detach().clone()
    for index in sampling.order(n, generator).split(sampling.batch_size):
        optimizer.zero_grad()
        eps = torch.randn(1, len(index), 1, generator=generator)
        objective(vae, Batch(x[index], index), eps).loss.mean().backward()
        optimizer.step()
    return (phi == before).all(1).float().mean().item()


def refit_time(
    vae: VAE, x: Float[Tensor, "n *shape"], steps: int, repeats: int = 5, label: Tensor | None = None
) -> tuple[float, float]:
    """How long q(z | x) takes for new data x, by fitting phi_i to them and by one pass of the encoder: the second.

    Args:
        vae: a model whose encoder is amortised
        steps: of the fit (see `refine`)
        repeats: how often each is timed, after a first time that is not; the median counts
        label: of the data, for a conditional model
    Returns:
        seconds to refit, seconds of one forward pass
    Raises:
        ValueError: if the encoder is not amortised, so that it has no forward pass of x.
    """
    if not vae.encoder.amortised:
        raise ValueError(f"encoder must be amortised to be timed on new data, got {type(vae.encoder).__name__}")
    batch = Batch(x, torch.arange(len(x), device=x.device), label)

    def seconds(refits: bool) -> float:
        start = perf_counter()
        if refits:
            refine(vae, x, steps, lr=0.1, label=label)
        else:
            with torch.no_grad():
                vae.encoder(batch)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return perf_counter() - start

    refitted, passed = ([seconds(refits) for _ in range(repeats + 1)][1:] for refits in (True, False))
    return median(refitted), median(passed)
