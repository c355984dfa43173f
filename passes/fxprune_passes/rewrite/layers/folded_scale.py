"""Folds a scale and a shift of every channel into the weight and bias of a layer."""

from __future__ import annotations

import torch

from fxprune.graph.editor import Editor
from fxprune_passes.rewrite.layers.affine_layer import Layer
from fxprune_passes.rewrite.layers.stored_weights import (
    is_zero,
    layer_bias,
    layer_weight,
    set_bias,
    set_weight,
)

Tensor = torch.Tensor


def scale_output(
    editor: Editor,
    layer: Layer,
    scale: Tensor,
    shift: Tensor | None,
    *,
    trained: bool | None = None,
) -> None:
    """Changes a layer so that it returns `scale * y + shift` instead of `y`; both are `[out]` in float64."""
    weight = layer_weight(editor, layer)
    set_weight(editor, layer, weight * _along_outputs(layer, scale))
    if layer.bias is not None or shift is not None:
        bias = scale * layer_bias(editor, layer)
        set_bias(editor, layer, bias if shift is None else bias + shift, trained=trained)


def scale_input(
    editor: Editor,
    layer: Layer,
    scale: Tensor,
    shift: Tensor | None,
    *,
    trained: bool | None = None,
) -> None:
    """Changes a layer so that it computes from `x` what it computed from `scale * x + shift`.

    Both are `[in]` in float64. Exact where `shift_objection` raises no objection.
    """
    weight = layer_weight(editor, layer)
    if not is_zero(shift):
        assert shift is not None
        spatial = tuple(range(2, weight.dim()))
        moved = (weight * _along_inputs(layer, shift)).sum((1, *spatial))
        set_bias(editor, layer, layer_bias(editor, layer) + moved, trained=trained)
    set_weight(editor, layer, weight * _along_inputs(layer, scale))


def shift_objection(layer: Layer, shift: Tensor | None) -> str:
    """Why a layer cannot absorb a shift of its input; "" where it can."""
    if is_zero(shift):
        return ""
    if layer.transposed:
        return "a transposed convolution sums fewer terms at its border, so a nonzero shift acts differently there"
    if any(layer.geometry.padding):
        return "the layer pads with zeros, to which a nonzero shift is not added"
    return ""


def _along_outputs(layer: Layer, values: Tensor) -> Tensor:
    """One value for each output channel, in a shape that broadcasts against the weight."""
    g = layer.geometry
    ones = (1,) * g.spatial
    if not layer.transposed:
        return values.reshape(-1, 1, *ones)
    return _by_group(values, g.groups, g.inputs, *ones)


def _along_inputs(layer: Layer, values: Tensor) -> Tensor:
    """One value for each input channel, in a shape that broadcasts against the weight."""
    g = layer.geometry
    ones = (1,) * g.spatial
    if layer.transposed:
        return values.reshape(-1, 1, *ones)
    return _by_group(values, g.groups, g.outputs, *ones)


def _by_group(values: Tensor, groups: int, rows: int, *ones: int) -> Tensor:
    """Values as `[rows, n/groups, ...]`, where each row holds those of its convolution group."""
    table = values.reshape(groups, -1).repeat_interleave(rows // groups, 0)
    return table.reshape(rows, -1, *ones)
