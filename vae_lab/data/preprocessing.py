"""From pixels to x, the values that the model sees."""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from vae_lab.checks import one_of, whole
from vae_lab.seeds import generator

CHUNK = 4096
"""How many data are prepared at a time: bounds the memory for what is made on the way."""


class Preprocessing(ABC):
    """Pixels -> x, float32 of the same shape, on the same device.

    `levels`: pixels are whole numbers 0 .. levels - 1; None: they are floats. Where x is random it is drawn from
    `generator`, which lives on the pixels' device.
    """

    resample: bool
    """Whether training data get a fresh draw for every batch. Validation and test data are always drawn once."""

    seed: int
    """Seeds what is drawn once, so that it is the same for every seed of a run."""

    @abstractmethod
    def __call__(
        self, pixels: Shaped[Tensor, "N *shape"], levels: int | None, generator: Generator
    ) -> Float[Tensor, "N *shape"]: ...


@final
class Raw(Preprocessing):
    """x = pixels / (levels - 1), in [0, 1]; floats as they are."""

    resample = False
    seed = 0

    def __call__(
        self, pixels: Shaped[Tensor, "N *shape"], levels: int | None, generator: Generator
    ) -> Float[Tensor, "N *shape"]:
        return scaled(pixels, levels)


@final
class Dequantised(Preprocessing):
    """x = (pixels + u) / levels, u ~ U[0, 1), in [0, 1): a density of x then bounds a probability of the pixels."""

    resample = True

    def __init__(self, seed: int) -> None:
        self.seed = whole("seed", seed, least=0)

    def __call__(
        self, pixels: Shaped[Tensor, "N *shape"], levels: int | None, generator: Generator
    ) -> Float[Tensor, "N *shape"]:
        if levels is None:
            raise ValueError("preprocessing must not be dequantised where data are floats: these have no levels")
        u = torch.rand(pixels.shape, generator=generator, device=pixels.device)
        below_one = 1 - 2**-24  # float32 rounds 255 + u up to 256 for u near 1
        return u.add_(pixels).div_(levels).clamp_(max=below_one)


@final
class BinarisedStatic(Preprocessing):
    """x in {0, 1}, the same in every epoch. With p = pixels / (levels - 1): "threshold", x = [p >= 0.5];
    "bernoulli", one draw x ~ Bernoulli(p)."""

    resample = False

    def __init__(self, method: str, seed: int) -> None:
        self.method = one_of("method", method, ("threshold", "bernoulli"))
        self.seed = whole("seed", seed, least=0)

    def __call__(
        self, pixels: Shaped[Tensor, "N *shape"], levels: int | None, generator: Generator
    ) -> Float[Tensor, "N *shape"]:
        p = probability(pixels, levels)
        return (p >= 0.5).float() if self.method == "threshold" else bernoulli(p, generator)


@final
class BinarisedDynamic(Preprocessing):
    """x ~ Bernoulli(p), p = pixels / (levels - 1), drawn afresh for every batch."""

    resample = True

    def __init__(self, seed: int) -> None:
        self.seed = whole("seed", seed, least=0)

    def __call__(
        self, pixels: Shaped[Tensor, "N *shape"], levels: int | None, generator: Generator
    ) -> Float[Tensor, "N *shape"]:
        return bernoulli(probability(pixels, levels), generator)


def prepared(
    pixels: Shaped[Tensor, "N *shape"], levels: int | None, preprocessing: Preprocessing, split: str
) -> Float[Tensor, "N *shape"]:
    """x of a split's pixels, drawn once where it is random: on the CPU, so that it is the same on every device."""
    x = torch.empty(pixels.shape)
    once = generator("cpu", preprocessing.seed, split)
    for some_x, some_pixels in zip(x.split(CHUNK), pixels.split(CHUNK), strict=True):
        some_x.copy_(preprocessing(some_pixels, levels, once))
    return x


def scaled(pixels: Shaped[Tensor, "N *shape"], levels: int | None) -> Float[Tensor, "N *shape"]:
    """pixels / (levels - 1); floats as they are."""
    return pixels if levels is None else pixels.float().div_(levels - 1)


def probability(pixels: Shaped[Tensor, "N *shape"], levels: int | None) -> Float[Tensor, "N *shape"]:
    """Pixels as probabilities; raises ValueError for floats outside [0, 1]."""
    p = scaled(pixels, levels)
    if levels is None and len(p) and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(
            f"preprocessing must not binarise floats outside [0, 1]; data reach from {p.min()} to {p.max()}"
        )
    return p


def bernoulli(p: Float[Tensor, "N *shape"], generator: Generator) -> Float[Tensor, "N *shape"]:
    """x ~ Bernoulli(p): [u < p], u ~ U[0, 1). On a CPU this takes half the time of `torch.bernoulli`."""
    return (torch.rand(p.shape, generator=generator, device=p.device) < p).float()
