"""A plain PyTorch loop with fused Adam over batches sliced from memory; it logs nothing."""

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.contenders import Contender, Job, Weights
from benchmarks.workloads import S2, Workload, read

GRAPH, BF16 = "graph", "bf16"  # kinds, on a GPU: the whole step as one CUDA graph, and mixed precision


class Net(nn.Module):
    """The network as anyone would write it in a notebook."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        act = {"tanh": nn.Tanh, "relu": nn.ReLU}[work.activation]
        self.V, self.bernoulli, D = work.V, work.likelihood == "bernoulli", work.side**2
        if not work.conv:
            [h] = work.hidden
            self.encoder = nn.Sequential(nn.Linear(D, h), act(), nn.Linear(h, 2 * work.d))
            self.decoder = nn.Sequential(nn.Linear(work.d, h), act(), nn.Linear(h, D))
            return
        a, b = work.hidden  # of images 28 x 28
        down = [nn.Conv2d(1, a, 3, 2, 1), act(), nn.Conv2d(a, b, 3, 2, 1), act()]
        up = [nn.ConvTranspose2d(b, a, 3, 2, 1, 1), act(), nn.ConvTranspose2d(a, 1, 3, 2, 1, 1)]
        head, tail = nn.Linear(49 * b, 2 * work.d), nn.Linear(work.d, 49 * b)
        self.encoder = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *down, nn.Flatten(), head)
        self.decoder = nn.Sequential(tail, nn.Unflatten(1, (b, 7, 7)), act(), *up, nn.Flatten())

    def losses(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the ELBO, minus the reconstruction, and the KL, in nats per datapoint."""
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        sigma = log_sigma.exp()
        z = mu + sigma * (torch.randn(self.V, *mu.shape, device=x.device) if eps is None else eps)
        y = self.decoder(z.flatten(0, 1)).unflatten(0, (self.V, len(x)))
        if self.bernoulli:
            rec = F.binary_cross_entropy_with_logits(y, x.expand_as(y), reduction="sum") / (self.V * len(x))
        else:
            rec = ((y - x) ** 2).sum() / (2 * S2 * self.V * len(x)) + 0.5 * x.shape[1] * math.log(2 * math.pi * S2)
        kl = 0.5 * (mu**2 + sigma**2 - 1 - 2 * log_sigma).sum() / len(x)
        return rec + kl, rec, kl


@final
class Bare(Contender):
    """The loop."""

    about = f"torch {torch.__version__}"

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        self.job, self.x = job, torch.from_numpy(read(Path(job.file))).to(job.device)

    def train(self) -> tuple[float, Weights]:
        work, x = self.job.work, self.x
        net = Net(work).to(self.job.device)
        optimizer = torch.optim.Adam(net.parameters(), fused=True, capturable=self.job.kind == GRAPH)

        def plain(batch: Tensor) -> None:
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.job.kind == BF16):
                loss, _, _ = net.losses(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        step = recorded(plain, x[: work.batch].clone()) if self.job.kind == GRAPH else plain
        wait(self.job.device)
        start = perf_counter()
        order = torch.randperm(len(x), device=x.device)[: work.batch * work.steps]
        for index in order.split(work.batch):
            step(x[index])
        wait(self.job.device)
        return perf_counter() - start, arrays(net)

    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        return scored(Net(self.job.work), weights, x, eps)


def recorded(step: Callable[[Tensor], None], batch: Tensor) -> Callable[[Tensor], None]:
    """A step as one CUDA graph, which reads its data from `batch`."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):  # what is recorded must have run before
        for _ in range(3):
            step(batch)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(batch)

    def replay(x: Tensor) -> None:
        batch.copy_(x)
        graph.replay()

    return replay


def wait(device: str) -> None:
    """Until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def arrays(net: nn.Module) -> Weights:
    """A network's parameters."""
    return [p.detach().cpu().numpy() for p in net.parameters()]


def fill(net: nn.Module, weights: Weights) -> None:
    """Gives a network these parameters."""
    with torch.no_grad():
        for p, w in zip(net.parameters(), weights, strict=True):
            p.copy_(torch.from_numpy(w))


@torch.no_grad()
def scored(net: Net, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
    """The loss of a Net with these parameters."""
    fill(net, weights)
    loss, _, _ = net.losses(torch.from_numpy(x), torch.from_numpy(eps))
    return float(loss)


def make(job: Job) -> Contender:
    """The contender of a job."""
    return Bare(job)
