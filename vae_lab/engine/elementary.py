"""Elementary functions for compiled steps on CPUs.

A small network's step is to a large part its activations and its likelihood. These take a fraction of the time of the
vector library's, whose errors are below 1e-7, and err by less than 4e-7 of their terms.

The coefficients have the least greatest relative error on the interval, found by least squares, weighted anew until all
errors were alike.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

END = 7.9
"""Where `tanh` is held: from there on it is 1 to 3e-7."""
TANH = (
    (0.9999999943569121, 0.13450628982432175, 0.0035790020287979714, 2.2023411126861805e-05, 1.5428207743275836e-08),
    (1.0, 0.4678395698585053, 0.026192275955488738, 0.00034236669592855104, 8.598875074252509e-07),
)
"""tanh(x) / x up to END, as a ratio of polynomials in x^2, to 6e-9."""
LOG1P = (
    0.999999969881322,
    -0.4999949314771429,
    0.33319096893302025,
    -0.24842982661194327,
    0.1910600796230718,
    -0.13663247539558984,
    0.07822596516818754,
    -0.029505243310420804,
    0.005232694626075325,
)
"""log(1 + x) / x up to 1, as a polynomial in x, to 3e-8."""


def decay(y: Tensor) -> Tensor:
    """e^-|y|, to be called wherever it is used: what has several uses Inductor would write to memory, in a pass of its
    own, whereas equal ones that meet in a loop are computed once."""
    return (-y.abs()).exp()


def polynomial(x: Callable[[], Tensor], coefficients: tuple[float, ...]) -> Tensor:
    """c_0 + c_1 x() + c_2 x()^2 + ..."""
    *rest, b, a = coefficients
    value = a * x() + b
    for c in reversed(rest):
        value = value * x() + c
    return value


def tanh(x: Tensor) -> Tensor:
    """tanh(x) of float32, to a relative 4e-7."""
    x = x.clamp(-END, END)
    p, q = (polynomial(lambda: x * x, c) for c in TANH)
    return x * p / q


def cross_entropy(y: Tensor, x: Tensor) -> Tensor:
    """-x log sigmoid(y) - (1 - x) log(1 - sigmoid(y)) = max(y, 0) - x y + log(1 + e^-|y|) of float32."""
    e = partial(decay, y)
    return y.clamp(min=0) - x * y + e() * polynomial(e, LOG1P)


def sigmoid(y: Tensor) -> Tensor:
    """1 / (1 + e^-y) of float32, by the exponential of `cross_entropy`, whose gradient it is."""
    return torch.where(y < 0, decay(y), 1.0) / (1 + decay(y))


def affine(b: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """x W + b. The library would first write b into each row of the result, where adding it can be part of what is
    computed of the result; to subtract -b is what Inductor does not take for the library's own operation."""
    return x @ W - (-b)


QUICK: dict[Callable[..., object], tuple[Callable[..., Tensor], int, tuple[object, ...]]] = {
    torch.ops.aten.tanh.default: (tanh, 1, ()),
    torch.ops.aten.binary_cross_entropy_with_logits.default: (cross_entropy, 2, (None, None, 0)),
    torch.ops.aten.sigmoid.default: (sigmoid, 1, ()),
    torch.ops.aten.addmm.default: (affine, 3, ()),
}
"""What is replaced by what; how many arguments it has, and what it is given besides: otherwise it stays."""


def quickened(graph: GraphModule) -> GraphModule:
    """The graph, with these functions in place of the library's, where they are of float32. It is changed."""
    for target, (function, n, rest) in QUICK.items():
        operations = make_fx(function)(*(torch.zeros(2, 2) for _ in range(n))).graph
        given = operations.find_nodes(op="placeholder")
        for node in graph.graph.find_nodes(op="call_function", target=target):
            if node.meta["val"].dtype is not torch.float32 or node.args[n:] != rest or node.kwargs:
                continue
            with graph.graph.inserting_before(node):
                own = cast(list[Node], list(node.args[:n]))
                made = graph.graph.graph_copy(operations, dict(zip(given, own, strict=True)))
            node.replace_all_uses_with(cast(Node, made))
            graph.graph.erase_node(node)
    graph.recompile()
    return graph
