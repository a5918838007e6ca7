"""How the learning rate changes: an optimiser and the number of steps -> a scheduler stepped once a step, or none."""

import math
from typing import final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.checks import number


@final
class Constant:
    """The learning rate stays as it is."""

    def __call__(self, optimizer: Optimizer, steps: int) -> None:
        return None


@final
class Cosine:
    """Half a cosine from the optimiser's learning rate down to a share of it, after a linear warm-up.

    Args:
        warmup: the share of all steps that warm up, in [0, 1)
        final: the share of the learning rate left at the end, >= 0
    """

    def __init__(self, warmup: float, final: float) -> None:
        self.warmup, self.final = number("warmup", warmup, least=0), number("final", final, least=0)
        if warmup >= 1:
            raise ValueError(f"warmup must be a share of the steps, below 1, got {warmup!r}")

    def __call__(self, optimizer: Optimizer, steps: int) -> LambdaLR:
        rising = self.warmup * steps

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            done = min(1.0, (step - rising) / max(1.0, steps - rising))
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))

        return LambdaLR(optimizer, factor)
