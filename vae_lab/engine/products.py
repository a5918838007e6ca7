"""Matrix products of compiled steps on CPUs, by whichever of torch's two libraries is the quicker.

MKL, which torch asks for float32, leaves an AMD processor's AVX-512 unused; oneDNN uses it, but takes longer to be
called. torch asks oneDNN where it may round to bfloat16. That is allowed here for as long as a step takes, and only
where it is seen not to be done: oneDNN does it on processors with instructions for bfloat16 matrices (AMX).
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from torch import Tensor
from torch.fx import GraphModule

WHOLE, HALVED = 2e6, 6e6
"""From how many floating-point operations on, in a step's mean over its products, oneDNN is quicker, on one thread of a
processor that has vectors of 512 bits whole (Zen 5), and of one that computes them by halves (Zen 4). A call takes 11
microseconds more than MKL's; an operation takes half as long on the former, on the latter a tenth less."""

ODD = 1 + 2**-10
"""Rounded to bfloat16 it is 1."""

aten = torch.ops.aten
PRODUCTS = aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default

Factors = Sequence[tuple[Tensor, Tensor]]
"""The two factors of each of a step's products; their values do not count."""


@final
class OneDnn(AbstractContextManager[None]):
    """While it lasts, products of float32 on CPUs are oneDNN's. It may be entered again and again."""

    def __init__(self) -> None:
        self.matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        self.before = self.matmul.fp32_precision
        self.matmul.fp32_precision = "bf16"

    def __exit__(self, *error: object) -> None:
        self.matmul.fp32_precision = self.before


def quickest(pairs: Factors) -> AbstractContextManager[None]:
    """In what steps with such products are made, so that these are the quicker library's."""
    flops = sum(2 * a.numel() * b.shape[-1] for a, b in pairs)
    if not pairs or flops < least() * len(pairs) or pairs[0][0].device.type != "cpu":
        return nullcontext()
    with (library := OneDnn()):
        return library if exact(pairs) else nullcontext()


def factors(graph: GraphModule) -> Factors:
    """What is multiplied in a graph."""
    nodes = [node for target in PRODUCTS for node in graph.graph.find_nodes(op="call_function", target=target)]
    return [(node.args[-2].meta["val"], node.args[-1].meta["val"]) for node in nodes]


def least() -> float:
    """From how many operations on oneDNN is quicker on this CPU; infinitely many where MKL uses all of it, or torch has
    not both libraries."""
    # older releases of torch do not tell
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (known.get("avx512_f") and "AMD" in str(known.get("cpu_name"))):
        return math.inf
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return math.inf
    return WHOLE if known.get("avx_vnni") else HALVED  # Zen 5 came with these instructions


def exact(pairs: Factors) -> bool:
    """Whether products of such factors keep what rounding to bfloat16 would lose."""
    for a, b in pairs:
        for u, v in ((ODD, 1.0), (1.0, ODD)):
            x, y = (torch.empty_strided(w.shape, w.stride()).fill_(value) for w, value in ((a, u), (b, v)))
            wanted = a.shape[-1] * ODD
            if bool((x @ y - wanted).abs().max() > wanted * 2**-12):
                return False
    return True
