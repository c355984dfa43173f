"""The sums over input channels that a layer computes, without its spatial axes."""

from __future__ import annotations

import torch

from fxprune_passes.rewrite.layers.affine_layer import Layer

Tensor = torch.Tensor


def by_input(weight: Tensor, layer: Layer) -> Tensor:
    """The weight of a layer as `[out, in/g, window]`; a transposed one is rearranged."""
    g = layer.geometry
    if not layer.transposed:
        return weight.reshape(g.outputs, g.inputs // g.groups, -1)
    split = weight.reshape(g.groups, g.inputs // g.groups, g.outputs // g.groups, -1)
    return split.transpose(1, 2).reshape(g.outputs, g.inputs // g.groups, -1)


def sum_inputs(weight: Tensor, inputs: Tensor, groups: int) -> Tensor:
    """The sums `[out]` over the input channels `[in]`, each weighted by `[out, in/g]`."""
    rows = weight.reshape(groups, -1, weight.shape[1])
    return (rows @ inputs.reshape(groups, -1, 1)).reshape(-1)
