"""Finds the activation functions without which two layers could be fused."""

from __future__ import annotations

from torch import fx

from fxprune.structure.activations import Activation
from fxprune.structure.paths import operator
from fxprune_passes.insert.places.weighted import weight_of
from fxprune_passes.rewrite.moves.moving_operators import is_average, is_view, moved_value


def is_between_layers(activation: Activation) -> bool:
    """Whether an activation lies alone between two layers, with norms, dropout, views and averages beside it.

    Without the activation nothing but linear operators is left between the two. An activation before or behind a
    residual addition, or one that several nodes read, lies between more than two layers: without it, no layer
    can be fused.
    """
    return _comes_from_layer(activation.source) and _leads_to_layer(activation.node)


def _comes_from_layer(node: fx.Node) -> bool:
    """Whether a value is that of a layer, possibly normalized or observed, with one reader at each step."""
    while not weight_of(node):
        if node.op != "call_module" and operator(node) != "batch_norm":
            return False
        node = node.all_input_nodes[0]
        if len(node.users) > 1:
            return False
    return True


def _leads_to_layer(node: fx.Node) -> bool:
    """Whether a value is read by a layer, possibly normalized or moved, with one reader at each step."""
    while len(node.users) == 1:
        (reader,) = node.users
        if weight_of(reader):
            return reader.args[0] is node
        if moved_value(reader) is node:
            if not (is_view(reader) or is_average(reader) or "dropout" in operator(reader)):
                return False
        elif operator(reader) != "batch_norm" or reader.args[0] is not node:
            return False
        node = reader
    return False
