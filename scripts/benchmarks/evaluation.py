"""IWAE-K of images on all threads, against running the encoder again for each repeated image; its peak memory."""

import multiprocessing
import re
import resource
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.comparison import About, Comparison, Goal, Taken, compare
from vae_lab import decoders, encoders, likelihoods, priors
from vae_lab.commands import machine
from vae_lab.distributions import reparameterise
from vae_lab.evaluation.estimators import importance
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

REENCODING = {"re-encodes, 100 a time": 100, "re-encodes, 500 a time": 500}
"""pythae's `get_nll` has 100 by default; 500 is quickest for this model."""
OURS = "vae_lab"
GOAL, MEMORY = 1.8, 2**30
D, HIDDEN, LATENT = (1, 28, 28), 500, 20  # W1's


def run(given: Namespace, folder: Path) -> Iterator[Comparison]:
    """Images per second."""
    machine.tune()  # as the command does
    vae, batch = scored(given.images, given.device)
    parts = batch.x.tensor_split(max(1, given.segments))
    contenders = {OURS: timed(parts, lambda part: importance(vae, part, given.samples))}
    for name, chunk in REENCODING.items():
        contenders[name] = timed(parts, lambda part, chunk=chunk: reencode(vae, part, given.samples, chunk))  # type: ignore[misc]
    title = f"IWAE-{given.samples} of {given.images} images, MLP 784-500-20, {torch.get_num_threads()} threads"
    goals = [Goal(OURS, name, GOAL) for name in REENCODING]
    found = compare(About("IWAE", title, "images/s", goals), contenders, given.segments)
    notes = [f"{OURS}: {given.images / found.median(OURS):.1f} s for all images"]
    for K in (given.samples, 10 * given.samples) if given.device == "cpu" else ():
        notes.append(
            f"peak memory of IWAE-{K:,} of 32 images: {in_fresh_process(memory, K) / 2**20:.0f} MiB, "
            f"of {MEMORY / 2**20:.0f} that are allowed"
        )
    yield found._replace(about=found.about._replace(notes=notes))


def timed(parts: tuple[Tensor, ...], work: Callable[[Batch], object]) -> Callable[[], Taken]:
    """Images per second of what is done with one part after another."""
    turn = cycle(parts)

    def segment() -> Taken:
        x = next(turn)
        start = time.perf_counter()
        work(Batch(x, torch.arange(len(x), device=x.device)))
        if x.is_cuda:
            torch.cuda.synchronize()
        return Taken(len(x) / (time.perf_counter() - start))

    return segment


def scored(images: int, device: str) -> tuple[VAE, Batch]:
    """W1's model, untrained, and images; neither changes the time."""
    torch.manual_seed(0)
    encoder, decoder = (part.MLP(D, LATENT, [HIDDEN], "tanh") for part in (encoders, decoders))
    vae = VAE(encoder, decoder, likelihoods.Bernoulli(D), priors.StandardNormal(LATENT)).eval().to(device)
    return vae, Batch(torch.rand(images, *D, device=device), torch.arange(images, device=device))


@torch.no_grad()
def reencode(vae: VAE, batch: Batch, K: int, chunk: int) -> Tensor:
    """IWAE-K with the encoder run for each repeated image, one chunk at a time, as pythae's `get_nll` does."""
    found, p = [], vae.p_z()
    for x in batch.x:
        log_w = []
        for start in range(0, K, chunk):
            repeated = x.expand(min(chunk, K - start), *x.shape).contiguous()
            q = vae.encoder(Batch(repeated, torch.zeros(len(repeated), dtype=torch.int64, device=x.device)))
            z = reparameterise(q, torch.randn(1, len(repeated), vae.d, device=x.device))
            log_w.append((vae.p_x(z).log_prob(repeated) + p.log_prob(z) - q.log_prob(z))[0])
        found.append(torch.cat(log_w).logsumexp(0) - np.log(K))
    return torch.stack(found)


def memory(K: int) -> int:
    """The bytes that a fresh process needs for IWAE-K of a few images, above those for one sample of one image."""
    vae, batch = scored(32, "cpu")
    importance(vae, Batch(batch.x[:1], batch.index[:1]), 1)  # imports more
    before = peak()
    importance(vae, batch, K)
    return peak() - before


def peak() -> int:
    """The most memory, in bytes, that this process has had."""
    status = Path("/proc/self/status")  # Linux: getrusage would count the process that this one was forked from
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(work: Callable[..., int], *given: object) -> int:
    """The value of `work`, in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(work, *given).result()


def options(parser: ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("--images", type=int, default=1000, help="how many to evaluate (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="K, of each of them (default: %(default)s)")
