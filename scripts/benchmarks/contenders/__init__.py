"""The ways of training a workload. A module for each, with a function `make`; it imports what it needs and no other."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from benchmarks.workloads import Workload

Weights = list[np.ndarray]
"""Of a model's layers from x to z and from z to x, each as torch has it: weight [out, in], bias [out]."""


class Job(NamedTuple):
    """What a contender is to do."""

    module: str  # of this package
    work: Workload
    file: str  # of the images
    folder: str  # for what it writes
    device: str = "cpu"
    models: int = 1  # trained at once
    kind: str = ""  # of a module that has several


class Contender(ABC):
    """One way of training a workload. Adam with the step size 1e-3, each datum once, in an order of its own."""

    about: str = ""
    """What it is made with, and its version."""

    @abstractmethod
    def train(self) -> tuple[float, Weights]:
        """Trains anew for the workload's steps; the seconds that the steps took, and the weights of the last model."""

    @abstractmethod
    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        """Minus the ELBO by `eps` [V, B, d] of a model with these weights, in nats per datum of x [B, D]."""
