"""Layers of a graph and where their output is complete: behind the norm and the activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program
from fxprune.structure.paths import operator

WEIGHTED = frozenset(
    (
        "linear",
        "addmm",
        "mm",
        "convolution",
        *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)),
    )
)
NORMS = frozenset(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"))


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        weighted: the convolution or linear.
        end: the last node of it: its norm, its activation, or the weighted node.
        weight: name of its weight.
        path: module path of the weight.
        needed: whether every path from the inputs to the outputs leads through it.
    """

    weighted: fx.Node
    end: fx.Node
    weight: str
    path: str
    needed: bool


def find_layers(program: Program) -> Iterator[Layer]:
    """The layers of a program in execution order; one whose weight is computed is none."""
    needed = on_every_path(program)
    for node in program.nodes:
        weight = weight_of(node)
        if weight:
            path = weight.rpartition(".")[0]
            yield Layer(node, _end(node), weight, path, needed=node in needed)


def on_every_path(program: Program) -> set[fx.Node]:
    """The nodes that every path of computed values from an input to an output leads through."""
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


def weight_of(node: fx.Node) -> str:
    """Name of the weight of a convolution or a linear; "" for any other node."""
    if operator(node) not in WEIGHTED:
        return ""
    second = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
    return str(second[0].target) if second else ""


def _end(node: fx.Node) -> fx.Node:
    while len(node.users) == 1:
        (user,) = node.users
        if not _finishes(user, node):
            break
        node = user
    return node


def _finishes(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node is the norm, the activation or an observer of the one it reads, and nothing else's."""
    if not is_operator(user):
        return user.op == "call_module"
    computed = [n for n in user.all_input_nodes if n.op != "get_attr"]
    name = operator(user)
    pointwise = torch.Tag.pointwise in user.target.tags or name in ("dropout", "silu", "prelu")  # type: ignore[union-attr]
    return computed == [node] and (name in NORMS or pointwise)
