"""Edits the graph: spelled sizes, pinned defaults and rescaled averages."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from fxprune.errors import PlanError
from fxprune.graph.operands import get_argument, set_argument
from fxprune.plan import Edit, Rescale, ScaleArgument, SetArgument


def edit_graph(graph: fx.Graph, edits: Iterable[Edit]) -> None:
    """Applies edits to a graph, in place.

    Raises:
        PlanError: an argument does not have the value that the plan expects.
    """
    nodes = {node.name: node for node in graph.nodes}
    for edit in edits:
        node = nodes[edit.node]
        if isinstance(edit, Rescale):
            _rescale(node, edit)
            continue
        whole = get_argument(node, edit.argument)
        old = whole if edit.index is None else whole[edit.index]
        new = _scaled(node, old, edit) if isinstance(edit, ScaleArgument) else _checked(old, edit)
        if edit.index is not None:
            new = [*whole[: edit.index], new, *whole[edit.index + 1 :]]
        set_argument(node, edit.argument, new)


def _checked(old: Any, edit: SetArgument) -> Any:
    if old != edit.old:
        raise PlanError(
            f"argument {edit.argument} is {old}, but the plan expects {edit.old}",
            where=f"node {edit.node}",
            do="make a new plan with fp.plan",
        )
    return edit.new


def _scaled(node: fx.Node, old: fx.Node, edit: ScaleArgument) -> fx.Node:
    """Computes old * numerator // denominator in the graph."""
    graph, value = node.graph, old.meta["val"]
    with graph.inserting_before(node):
        product = graph.call_function(operator.mul, (old, edit.numerator))
        quotient = graph.call_function(operator.floordiv, (product, edit.denominator))
    product.meta.update(old.meta, val=value * edit.numerator)
    quotient.meta.update(old.meta, val=value * edit.numerator // edit.denominator)
    return quotient


def _rescale(node: fx.Node, edit: Rescale) -> None:
    with node.graph.inserting_after(node):
        scaled = node.graph.call_function(
            torch.ops.aten.mul.Tensor, (node, edit.numerator / edit.denominator)
        )
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    scaled.meta.update(node.meta)
