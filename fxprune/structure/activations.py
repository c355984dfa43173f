"""Finds the activation functions of a graph, including those written as several calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.graph.operands import get_argument, is_operator
from fxprune.graph.program import Program
from fxprune.structure.paths import operator

# What they make of a number depends on its sign: below 0 they are off, or nearly so.
ACTIVATIONS = frozenset(
    (
        *("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "threshold"),
        *("elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"),
        *("sigmoid", "hardsigmoid", "log_sigmoid", "tanh", "softplus"),
    )
)
# The identity for every number above 0.
_IDENTITY_ABOVE = frozenset(("relu", "leaky_relu", "prelu"))
_SIGNS = frozenset(("mul", "div"))


@dataclass(frozen=True, eq=False)
class Activation:
    """One activation function: each element of `node` depends on the same element of `source` alone.

    Attributes:
        source: the pre-activations.
        node: the activations.
        name: the operator; for `x * sigmoid(x)` and similar forms, that of the inner function.
        nodes: all nodes of the function, in execution order.
        identity_above: whether the function leaves every number above 0 unchanged.
        zero_below: whether the function maps every number that is not above 0 to 0.
    """

    source: fx.Node
    node: fx.Node
    name: str
    nodes: tuple[fx.Node, ...]
    identity_above: bool = False
    zero_below: bool = False

    @property
    def readers(self) -> tuple[fx.Node, ...]:
        """The nodes of the function that read the pre-activations, in execution order."""
        return tuple(n for n in self.nodes if self.source in n.all_input_nodes)


def find_activations(program: Program) -> Iterator[Activation]:
    """Yields the activation functions of a program in execution order.

    A product such as `x * f(x)` or `0.5 * x * f(x)` counts as one activation function if `f` contains an
    activation and only elementwise calls (SiLU, GELU or Mish, written out); the activation inside `f` is
    then not listed.
    """
    inside: set[fx.Node] = set()
    found: list[Activation] = []
    order = {node: i for i, node in enumerate(program.nodes)}
    for node in reversed(order):
        if node in inside:
            continue
        composite = _self_gated(node, order)
        if composite is not None:
            inside.update(composite.nodes)
            found.append(composite)
        elif operator(node) in ACTIVATIONS and isinstance(node.args[0], fx.Node):
            found.append(_plain(node))
    return reversed(found)


def _plain(node: fx.Node) -> Activation:
    name, source = operator(node), node.args[0]
    assert isinstance(source, fx.Node)
    above = name in _IDENTITY_ABOVE or _is_unit_elu(node)
    return Activation(source, node, name, (node,), above, _is_zero_below(node))


def _is_unit_elu(node: fx.Node) -> bool:
    if operator(node) == "celu":
        return True
    scales = ("scale", "input_scale")
    return operator(node) == "elu" and all(get_argument(node, s) == 1 for s in scales)


def _is_zero_below(node: fx.Node) -> bool:
    name = operator(node)
    if name == "hardtanh":
        return bool(get_argument(node, "min_val") == 0)
    if name == "threshold":
        return bool(get_argument(node, "threshold") == get_argument(node, "value") == 0)
    return name in ("relu", "relu6")


def _self_gated(node: fx.Node, order: dict[fx.Node, int]) -> Activation | None:
    """Finds the product of a value, perhaps scaled by a positive number, and a function of the same value."""
    if operator(node) != "mul" or len(node.args) < 2:
        return None
    for x, f in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, fx.Node) or not isinstance(f, fx.Node):
            continue
        scaled = _unscaled(x)
        source = scaled[-1]
        nodes = _between(source, f, order)
        inner = [n for n in nodes if operator(n) in ACTIVATIONS]
        if inner:
            every = {*nodes, *scaled[:-1], node}
            ordered = tuple(sorted(every, key=order.__getitem__))
            return Activation(source, node, operator(inner[0]), ordered)
    return None


def _unscaled(node: fx.Node) -> list[fx.Node]:
    """Returns a value and the values that it is a positive multiple of, nearest first."""
    found = [node]
    while operator(found[-1]) in _SIGNS and len(found[-1].args) == 2:
        source, factor = found[-1].args
        if not isinstance(source, fx.Node) or not isinstance(factor, int | float) or factor <= 0:
            break
        found.append(source)
    return found


def _between(source: fx.Node, end: fx.Node, order: dict[fx.Node, int]) -> set[fx.Node]:
    """Returns the nodes from a value to `end`; empty if they read another value or are not elementwise."""
    found: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node is source or node in found:
            continue
        if order[node] < order[source] or not _by_number(node):
            return set()
        found.add(node)
        todo += node.all_input_nodes
    return found


def _by_number(node: fx.Node) -> bool:
    """Returns whether a node is elementwise on values that are all computed from one value."""
    return (
        is_operator(node)
        and bool(node.all_input_nodes)
        and (torch.Tag.pointwise in node.target.tags or operator(node) in ACTIVATIONS)  # type: ignore[union-attr]
    )
