"""Moves an average in front of a layer that reads one position at a time, which then computes fewer positions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator, value_readers
from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.layers.affine_layer import Layer, channel_axis, read_layer
from fxprune_passes.rewrite.layers.stored_weights import layer_weight, set_weight
from fxprune_passes.rewrite.moves.moving_operators import is_average, shifts_alike

aten = torch.ops.aten


def fuse_pooled(fusion: Fusion, node: fx.Node) -> bool:
    """Moves an average in front of the layer it reads where that is cheaper; returns whether it did."""
    if not is_average(node) or not shifts_alike(node):
        return False
    layer = read_layer(node.args[0])
    if layer is None or not _is_pointwise(layer) or not _averages_positions(node, layer):
        return False
    if len(value_readers(layer.node)) > 1:
        return False
    narrows = node.meta["val"].dim() < layer.node.meta["val"].dim() and layer.geometry.spatial > 0
    if narrows and fusion.owners.objection(layer.weight):
        return False
    new, old = (fusion.cost.macs(layer.geometry, n) for n in (node, layer.node))
    costs = f"{new:,} MACs instead of {old:,} MACs"
    if new >= old or not fusion.allow(
        layer.node, f"moved behind the average {node.name}", "pooled", costs
    ):
        return False
    _swap(fusion, node, layer, narrows=narrows)
    return True


def _is_pointwise(layer: Layer) -> bool:
    g = layer.geometry
    single = all(k == s == 1 for k, s in zip(g.kernel, g.stride, strict=True))
    return single and not any(g.padding) and not layer.transposed


def _averages_positions(node: fx.Node, layer: Layer) -> bool:
    """Whether an average leaves the channel axis in place for the layer, and the dtype unchanged."""
    rank, channels = layer.node.meta["val"].dim(), channel_axis(layer)
    if operator(node) != "mean":
        return layer.geometry.spatial > 0
    dims = {cast(int, d) % rank for d in get_argument(node, "dim") or range(rank)}
    if channels in dims or 0 in dims or get_argument(node, "dtype") is not None:
        return False
    whole = dims == set(range(2, rank)) and layer.geometry.groups == 1
    return bool(get_argument(node, "keepdim")) or not layer.geometry.spatial or whole


def _swap(fusion: Fusion, node: fx.Node, layer: Layer, *, narrows: bool) -> None:
    """Exchanges the average and the layer; without spatial axes the layer becomes a linear layer."""
    editor, old = fusion.editor, layer.node
    averaged = editor.call(
        cast(Any, node.target), (layer.source, *node.args[1:]), node.kwargs, before=node, like=node
    )
    target, args = old.target, (averaged, *old.args[1:])
    if narrows:
        set_weight(editor, layer, layer_weight(editor, layer).flatten(1))
        target, args = aten.linear.default, (averaged, layer.weight, layer.bias)
    kwargs = {} if narrows else old.kwargs
    new = editor.call(cast(Any, target), args, kwargs, before=node, like=old)
    fusion.remove(node, new)
    if not old.users:
        editor.graph.erase_node(old)
