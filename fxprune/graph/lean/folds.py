"""Puts the gates of a graph into the vectors and weights next to them."""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxprune.graph.gate import arguments
from fxprune.graph.lean.multipliers import into_columns, into_rows, multiply, scaled
from fxprune.graph.operands import get_argument, set_argument

aten = torch.ops.aten

_CONVOLUTIONS = tuple(
    getattr(getattr(aten, f"conv{n}d"), kind) for n in (1, 2, 3) for kind in ("default", "padding")
)
_LAYERS = (aten.linear.default, *_CONVOLUTIONS)
# A multiple of what they read gives the same multiple of what they return.
_MOVERS = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.reshape.default,
    aten.transpose.int,
    aten.view.default,
)


def fold_gate(gate: fx.Node, multiplier: fx.Node) -> None:
    """Replaces the call of a gate by what costs least.

    The gate of a whole value goes into the scale and shift of the batch norm that computes it, or into the rows of the
    layer that does; gates of units go into the columns of the layers that read them. What remains multiplies the value.

    Args:
        gate: the call, `path(value, axis, draw, tiled)`.
        multiplier: the node that reads the multiplier of the gate.
    """
    told = arguments(gate)
    value, axis, tiled = told["value"], told["axis"], told["tiled"]
    layers = [] if axis is None else _read_by(gate, value, axis)
    if layers:
        _into_layers(gate, value, axis, tiled, multiplier, layers)
        return
    rest = multiplier if axis is not None else _into_source(_source(value), multiplier)
    product = value if rest is None else _call(gate, multiply, rest, value, axis, tiled)
    gate.replace_all_uses_with(product)
    gate.graph.erase_node(gate)


def _call(before: fx.Node, target: Callable[..., Any], *args: Any) -> fx.Node:
    with before.graph.inserting_before(before):
        return before.graph.call_function(target, args)


def _source(value: fx.Node) -> fx.Node:
    """The node whose result reaches a value through nodes that only move it; nothing else reads it on the way."""
    while value.target in _MOVERS and len(value.users) == 1:
        value = value.args[0]  # type: ignore[assignment]
    return value


def _into_source(source: fx.Node, multiplier: fx.Node) -> fx.Node | None:
    """Moves the multiplier of a whole value into the norm or layer that computes it; returns what remains of it."""
    if len(source.users) != 1:
        return multiplier
    if source.target is aten.batch_norm.default:
        vectors = {name: get_argument(source, name) for name in ("weight", "bias")}
        if all(isinstance(v, fx.Node) for v in vectors.values()):
            for name, vector in vectors.items():
                set_argument(source, name, _call(source, scaled, multiplier, vector))
            return None
    if source.target in _LAYERS:
        told = [get_argument(source, name) for name in ("input", "weight", "bias")]
        parts = _call(source, into_rows, multiplier, *told)
        rest, weight, bias = (_call(source, getitem, parts, i) for i in range(3))
        set_argument(source, "weight", weight)
        set_argument(source, "bias", bias)
        return rest
    return multiplier


def _read_by(gate: fx.Node, value: fx.Node, axis: int) -> list[fx.Node]:
    """The layers that sum over the units of a gate, if nothing else reads them; else none."""
    known = value.meta.get("val")
    if known is None:
        return []
    for user in gate.users:
        if user.target not in _LAYERS or user.args[0] is not gate or gate in user.args[1:]:
            return []
        kernel = 0 if user.target is aten.linear.default else _kernel_axes(user)
        if axis % known.dim() != known.dim() - 1 - kernel:
            return []
    layers = sorted(gate.users)
    return layers if all(get_argument(n, "weight") < layers[0] for n in layers) else []


def _kernel_axes(convolution: fx.Node) -> int:
    return int(str(convolution.target).partition("conv")[2][0])


def _into_layers(
    gate: fx.Node,
    value: fx.Node,
    axis: int | None,
    tiled: bool,
    multiplier: fx.Node,
    layers: list[fx.Node],
) -> None:
    weights = [get_argument(layer, "weight") for layer in layers]
    groups = [1 if n.target is aten.linear.default else get_argument(n, "groups") for n in layers]
    parts = _call(layers[0], into_columns, multiplier, value, axis, tiled, groups, *weights)
    for i, layer in enumerate(layers):
        layer.update_arg(0, _call(layers[0], getitem, parts, 0))
        set_argument(layer, "weight", _call(layers[0], getitem, parts, i + 1))
    gate.graph.erase_node(gate)
