"""What is trained: the shapes of the models, and their data. Needs numpy alone, as a contender's interpreter may have
no more."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

S2 = 0.1  # of the Gaussian likelihood


class Workload(NamedTuple):
    """A network D-hidden-d and back, an MLP or `hidden` channels of convolutions; `steps` of training make one timed
    segment."""

    name: str
    title: str
    likelihood: str  # bernoulli, or gaussian with S2
    hidden: list[int]
    d: int
    activation: str
    steps: int
    V: int = 1
    batch: int = 100
    side: int = 28  # of the images

    @property
    def conv(self) -> bool:
        """Whether the network is convolutional."""
        return len(self.hidden) > 1

    def shape(self) -> list[str]:
        """The model, as overrides of vae_lab's command line."""
        kind, widths = ("conv", "channels") if self.conv else ("mlp", "hidden")
        model = [f"d={self.d}", f"objective.V={self.V}", f"encoder={kind}", f"decoder={kind}"]
        model += [f"encoder.{widths}={self.hidden}", f"decoder.{widths}={self.hidden[::-1]}"]
        model += [f"{part}.activation={self.activation}" for part in ("encoder", "decoder")]
        s2 = [f"likelihood.s2={S2}"] if self.likelihood == "gaussian" else []
        return [*model, f"likelihood={self.likelihood}", *s2, f"sampling.batch_size={self.batch}"]

    def products(self) -> list[tuple[int, int, int]]:
        """The matrix products [m, k] [k, n] of an MLP's step: forwards, and backwards to weights and inputs."""
        if self.conv:
            return []
        D, [h] = self.side**2, self.hidden
        sides = (self.batch, [D, h, 2 * self.d]), (self.V * self.batch, [self.d, h, D])
        found = []
        for rows, widths in sides:
            for n_in, n_out in pairwise(widths):
                found += [(rows, n_in, n_out), (n_out, rows, n_in), (rows, n_out, n_in)]
        found.remove((self.batch, h, D))  # nothing asks for the gradient of x
        return found

    def flops(self) -> int:
        """Of these products."""
        return sum(2 * m * k * n for m, k, n in self.products())


W1 = Workload("W1", "MLP 784-500-20, Fashion-MNIST", "bernoulli", [500], 20, "tanh", 600)
W1V10 = W1._replace(name="W1V10", title=f"{W1.title}, V = 10", steps=120, V=10)
W5 = Workload("W5", "MLP 64-128-8, digits", "gaussian", [128], 8, "tanh", 3000, side=8)
CONV = Workload(
    "conv", "conv 28x28, 32 and 64 channels, batch 128", "bernoulli", [32, 64], 20, "relu", 60, batch=128
)  # fmt: skip
WORKLOADS = {work.name: work for work in (W1, W1V10, W5, CONV)}


def write(work: Workload, folder: Path, root: str | None = None) -> Path:
    """A file of uint8 images, as many as a segment takes and one more, for the test: digits, Fashion-MNIST from `root`,
    or else made up; repeated until there are enough."""
    from vae_lab.data.sources import Digits, FashionMnist  # here, as other interpreters do not have them

    if work.side == 8:
        x = (Digits([8, 8], 0, 0).load().train.x.numpy() * 15).astype(np.uint8)
    elif root:
        x = FashionMnist([28, 28], 0, root, None, []).load().train.x.numpy()
    else:
        x = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    n = work.batch * work.steps + 1
    path = folder / f"{work.name}-{n}.npz"
    np.savez(path, x=np.tile(x, (-(-n // len(x)), 1, 1))[:n], y=np.arange(n) % 10)
    return path


def read(path: Path) -> np.ndarray:
    """The images of such a file as floats in [0, 1], [n, D]."""
    x = np.load(path)["x"]
    return x.reshape(len(x), -1).astype(np.float32) / 255
