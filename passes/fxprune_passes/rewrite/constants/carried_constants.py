"""The contribution of constant inputs to the outputs of a layer: a bias, or a map where the layer is padded."""

from __future__ import annotations

import torch

from fxprune_passes.rewrite.layers.affine_layer import Layer
from fxprune_passes.rewrite.layers.channel_sums import by_input, sum_inputs
from fxprune_passes.rewrite.layers.layer_call import operator_of, window_of

Tensor = torch.Tensor


def carried(weight: Tensor, layer: Layer, inputs: Tensor) -> Tensor:
    """The contribution `[out]` of constant inputs `[in]` to a layer without padding."""
    return sum_inputs(by_input(weight, layer).sum(-1), inputs, layer.geometry.groups)


def takes_map(layer: Layer) -> bool:
    """Whether constant inputs contribute a fixed map: the layer is a padded convolution of a map of known size."""
    sizes = layer.source.meta["val"].shape[2:]
    known = all(isinstance(n, int) for n in sizes) and layer.source.meta["val"].dim() > 2
    return known and any(layer.geometry.padding) and not layer.transposed


def carried_map(weight: Tensor, layer: Layer, inputs: Tensor) -> Tensor:
    """The contribution `[out, *positions]` of constant inputs `[in]` to a padded convolution."""
    spatial = layer.source.meta["val"].shape[2:]
    ones = (1,) * len(spatial)
    value = inputs.reshape(1, -1, *ones).expand(1, -1, *spatial)
    found: Tensor = operator_of(layer.geometry)(value, weight, None, *window_of(layer.geometry))
    return found[0]
