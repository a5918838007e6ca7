"""Elementary functions for compiled steps on CPUs."""

from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

END = 7.9
"""Where `tanh` is held: from there on it is 1 to 3e-7."""
P = 0.9999999943569121, 0.13450628982432175, 0.0035790020287979714, 2.2023411126861805e-05, 1.5428207743275836e-08
Q = 1.0, 0.4678395698585053, 0.026192275955488738, 0.00034236669592855104, 8.598875074252509e-07
"""x P(x^2) / Q(x^2) has the least greatest relative error of tanh(x) up to END, 6e-9, of all such polynomials; found by
least squares, weighted anew until all errors were alike."""


def tanh(x: Tensor) -> Tensor:
    """tanh of float32 to a relative 4e-7, from a fourth of the operations that the vector library takes for an error of
    6e-8: half of a small network's step is its activations."""
    x = x.clamp(-END, END)
    t = x * x
    p, q = P[-1] * t + P[-2], Q[-1] * t + Q[-2]
    for a, b in zip(P[-3::-1], Q[-3::-1], strict=True):
        p, q = p * t + a, q * t + b
    return x * p / q


def quickened(graph: GraphModule) -> GraphModule:
    """The graph, with every tanh of float32 computed by `tanh`. It is changed."""
    operations = make_fx(tanh)(torch.zeros(())).graph
    [given] = operations.find_nodes(op="placeholder")
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default):
        if node.meta["val"].dtype is torch.float32:
            with graph.graph.inserting_before(node):
                made = graph.graph.graph_copy(operations, {given: cast(Node, node.args[0])})
            node.replace_all_uses_with(cast(Node, made))
            graph.graph.erase_node(node)
    graph.recompile()
    return graph
