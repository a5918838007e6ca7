"""The matrix products of an MLP's step alone, into memory that is there: as fast as a step could be, were they all.
They are those of whichever library a compiled step would take."""

from time import perf_counter
from typing import final

import numpy as np
import torch

from benchmarks.contenders import Contender, Job, Weights
from benchmarks.contenders.bare import wait
from vae_lab.engine.products import quickest


@final
class Products(Contender):
    """The products, those of several models as batches."""

    about = f"torch {torch.__version__}"

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        self.job = job
        lead = (job.models,) if job.models > 1 else ()
        self.product = torch.bmm if lead else torch.mm
        self.operands = [
            tuple(torch.randn(*lead, *size, device=job.device) for size in ((m, k), (k, n), (m, n)))
            for m, k, n in job.work.products()
        ]
        self.library = quickest([(a, b) for a, b, _ in self.operands])

    def train(self) -> tuple[float, Weights]:
        wait(self.job.device)
        start = perf_counter()
        with self.library:
            for _ in range(self.job.work.steps):
                for a, b, out in self.operands:
                    self.product(a, b, out=out)
        wait(self.job.device)
        return perf_counter() - start, []

    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        raise AssertionError("nothing is trained")


def make(job: Job) -> Contender:
    """The contender of a job."""
    return Products(job)
