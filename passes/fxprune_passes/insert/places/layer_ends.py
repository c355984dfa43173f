"""Finds the layers of a graph and where their output is complete: after the normalization and the activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program
from fxprune.structure.paths import operator
from fxprune_passes.insert.places.weighted import weight_of

_NORMS = frozenset(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"))


@dataclass(frozen=True)
class Layer:
    """A weighted layer with the normalization and the activation function that follow it.

    Attributes:
        weighted: the convolution or linear layer.
        end: the last of its nodes: the normalization, the activation function, or `weighted` itself.
        weight: the name of its weight.
        path: the module path of the weight.
        needed: whether every path from the inputs to the outputs passes through it.
    """

    weighted: fx.Node
    end: fx.Node
    weight: str
    path: str
    needed: bool


def find_layers(program: Program) -> Iterator[Layer]:
    """The layers of a program in execution order, without those whose weights are computed."""
    needed = on_every_path(program)
    for node in program.nodes:
        weight = weight_of(node)
        if weight:
            path = weight.rpartition(".")[0]
            yield Layer(node, _end(node), weight, path, needed=node in needed)


def on_every_path(program: Program) -> set[fx.Node]:
    """The nodes through which every path of computed values from an input to an output passes."""
    paths = nx.DiGraph()
    start = "start"
    for node in program.nodes:
        for source in node.all_input_nodes:
            paths.add_edge(source, node)
        if node.op == "placeholder":
            paths.add_edge(start, node)
    (end,) = program.graph.find_nodes(op="output")
    over = nx.immediate_dominators(paths, start)
    found: set[fx.Node] = set()
    while end != start and end in over:
        found.add(end)
        end = over[end]
    return found


def _end(node: fx.Node) -> fx.Node:
    while len(node.users) == 1:
        (user,) = node.users
        if not _finishes(user, node):
            break
        node = user
    return node


def _finishes(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node is the normalization, the activation or an observer of the one node that it reads."""
    if not is_operator(user):
        return user.op == "call_module"
    computed = [n for n in user.all_input_nodes if n.op != "get_attr"]
    name = operator(user)
    pointwise = torch.Tag.pointwise in user.target.tags or name in ("dropout", "silu", "prelu")  # type: ignore[union-attr]
    return computed == [node] and (name in _NORMS or pointwise)
