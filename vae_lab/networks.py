"""What encoders and decoders are built from."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vae_lab.checks import one_of

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}


def activation(name: str) -> nn.Module:
    """The activation called `name`; raises ValueError for an unknown one."""
    return ACTIVATIONS[one_of("activation", name, ACTIVATIONS)]()


def mlp(widths: Sequence[int], act: str) -> nn.Sequential:
    """Linear layers of the given widths, with an activation between each two."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation(act)]
    return nn.Sequential(*layers[:-1])


def with_label(
    h: Float[Tensor, "*lead n"], label: Int[Tensor, "*some"] | None, classes: int
) -> Float[Tensor, "*lead n_classes"]:
    """h with the label's one-hot code beside it; h itself where there are no classes.

    Raises:
        ValueError: if there are classes and no labels.
    """
    if not classes:
        return h
    if label is None:
        raise ValueError(f"classes must be 0 where data have no labels, got {classes}")
    code = (label[..., None] == torch.arange(classes, device=label.device)).to(h.dtype)  # [B, classes]
    return torch.cat([h, code.expand(*h.shape[:-1], classes)], -1)


def halvings(size: int, times: int) -> list[int]:
    """The sizes of an image's side under `times` convolutions of stride 2: each is half of the last, rounded up."""
    sizes = [size]
    for _ in range(times):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def image_shape(shape: Sequence[int], who: str) -> tuple[int, int, int]:
    """`shape` as (C, H, W); raises ValueError where the data are no images."""
    if len(shape) != 3:
        raise ValueError(f"shape must be [C, H, W] for {who}, which takes images, got {list(shape)}; use mlp or linear")
    C, H, W = shape
    return C, H, W
