"""What constant inputs of a layer add to its outputs: a bias, or at a padded border a map."""

from __future__ import annotations

import torch

from fxprune_passes.rewrite.affine_layer import Layer
from fxprune_passes.rewrite.constant_units import by_input, sum_inputs
from fxprune_passes.rewrite.layer_cost import operator_of, window_of

Tensor = torch.Tensor


def carried(weight: Tensor, layer: Layer, inputs: Tensor) -> Tensor:
    """What constant inputs `[in]` of a layer without padding add to its outputs `[out]`."""
    return sum_inputs(by_input(weight, layer).sum(-1), inputs, layer.geometry.groups)


def takes_map(layer: Layer) -> bool:
    """Whether what constant inputs add is one known map: a convolution of a map of known size."""
    sizes = layer.source.meta["val"].shape[2:]
    known = all(isinstance(n, int) for n in sizes) and layer.source.meta["val"].dim() > 2
    return known and any(layer.geometry.padding) and not layer.transposed


def carried_map(weight: Tensor, layer: Layer, inputs: Tensor) -> Tensor:
    """What constant inputs `[in]` of a padded convolution add to its outputs, `[out, *positions]`."""
    spatial = layer.source.meta["val"].shape[2:]
    ones = (1,) * len(spatial)
    value = inputs.reshape(1, -1, *ones).expand(1, -1, *spatial)
    found: Tensor = operator_of(layer.geometry)(value, weight, None, *window_of(layer.geometry))
    return found[0]
