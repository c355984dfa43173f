"""How a layer of a given geometry is called: its operator and its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.graph.operands import get_argument
from fxprune_passes.rewrite.layers.affine_layer import Geometry

_CONVOLUTIONS: dict[int, Any] = {
    1: torch.ops.aten.conv1d.default,
    2: torch.ops.aten.conv2d.default,
    3: torch.ops.aten.conv3d.default,
}


def operator_of(geometry: Geometry) -> Any:
    """The operator that computes a layer of this geometry."""
    return _CONVOLUTIONS[geometry.spatial] if geometry.spatial else torch.ops.aten.linear.default


def window_of(geometry: Geometry) -> tuple[Any, ...]:
    """The arguments of that operator that follow the bias."""
    g = geometry
    if not g.spatial:
        return ()
    return list(g.stride), list(g.padding), list(g.dilation), g.groups


def set_geometry(node: fx.Node, source: fx.Node, geometry: Geometry) -> None:
    """Changes the call of a layer to another geometry and source; its weight and bias stay."""
    weight, bias = get_argument(node, "weight"), get_argument(node, "bias")
    node.target = operator_of(geometry)
    node.args, node.kwargs = (source, weight, bias, *window_of(geometry)), {}
