"""Finds the axis of a value along which its units lie: the channel axis of the weighted layer before it."""

from __future__ import annotations

import numpy as np
from torch import fx

from fxprune.analysis.axes import Axes
from fxprune.structure.paths import operator
from fxprune_passes.insert.places.unit_places import MOVERS
from fxprune_passes.insert.places.weighted import weight_of

_LINEAR = frozenset(("linear", "mm", "addmm", "matmul"))
_STILL = frozenset(("alias", "clone", "contiguous", "detach", "to", "roll", "_to_copy"))


def channel_axis(axes: Axes, value: fx.Node) -> int | None:
    """The axis of the units of a value; None where neither a weighted layer nor a label determines it.

    The output axis of the nearest preceding weighted layer is known: the last axis of a linear layer, and
    the axis before the spatial axes of a convolution. Where axes have been moved since, the labels show
    where that axis is now.
    """
    moved = False
    node: fx.Node | None = value
    while node is not None and not weight_of(node):
        name = operator(node)
        moved = moved or (name in MOVERS and name not in _STILL and not name.endswith("dropout"))
        node = next(
            (n for n in node.all_input_nodes if n.op not in ("get_attr", "placeholder")), None
        )
    if node is None:
        return None
    rank: int = node.meta["val"].dim()
    own = rank - 1 if operator(node) in _LINEAR else rank - 1 - _spatial(node)
    if not moved and value.meta["val"].dim() == rank:
        return own
    return _carried(axes, node, own, value)


def _spatial(convolution: fx.Node) -> int:
    """The number of spatial axes of a convolution: those of its weight without the first two."""
    weight = convolution.args[1]
    assert isinstance(weight, fx.Node)
    return int(weight.meta["val"].dim()) - 2


def _carried(axes: Axes, layer: fx.Node, own: int, value: fx.Node) -> int | None:
    """The only axis of a value that carries the units of an axis of the output of a layer; else None."""
    labels = axes.nodes.get(value)
    source = axes.nodes.get(layer)
    if not isinstance(labels, tuple) or not isinstance(source, tuple):
        return None
    units = set().union(*(np.unique(c).tolist() for c in axes.final(source[own]).columns)) - {0}
    found = [
        i
        for i, label in enumerate(labels)
        if any(not units.isdisjoint(c.tolist()) for c in axes.final(label).columns)
    ]
    return found[0] if len(found) == 1 else None
