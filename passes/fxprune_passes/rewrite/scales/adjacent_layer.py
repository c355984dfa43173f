"""Finds the nearest layer that can absorb a scale and a shift of a value, across operators that move numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxprune.structure.paths import value_readers
from fxprune_passes.rewrite.layers.affine_layer import Layer, channel_axis, read_layer
from fxprune_passes.rewrite.moves.moved_vector import Vector, before, behind, pick
from fxprune_passes.rewrite.moves.moving_operators import moved_value, shifts_alike

Tensor = torch.Tensor


@dataclass(frozen=True)
class Beside:
    """A layer that can absorb a scale and a shift.

    Attributes:
        layer: the layer.
        index: the entry of the scale and the shift for each of its channels; -1 where there is none.
    """

    layer: Layer
    index: Tensor

    def parts(self, scale: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The scale and the shift of each channel of the layer."""
        return pick(scale, self.index, 1.0), None if shift is None else pick(shift, self.index, 0.0)


def layer_before(value: fx.Node, vector: Vector) -> Beside | str:
    """The layer that computes a value, possibly moved; or why none can be used, "" where the node is no layer."""
    shared = ""
    while True:
        if (count := len(value_readers(value))) > 1:
            shared = shared or f"{value.name} has {count} readers"
        if (layer := read_layer(value)) is not None:
            return shared or _at(layer, vector.over(channel_axis(layer), layer.geometry.outputs))
        source = moved_value(value)
        if source is None or not shifts_alike(value):
            return ""
        found = before(value, vector)
        if found is None:
            return f"{value.name} spreads it over several axes"
        value, vector = source, found


def layer_behind(value: fx.Node, vector: Vector) -> Beside | str:
    """The layer that reads a value, possibly moved; or why none can be used, "" where the node is no layer."""
    while len(readers := value_readers(value)) == 1:
        (reader,) = readers
        layer = read_layer(reader)
        if layer is not None and layer.source is value:
            return _at(layer, vector.over(channel_axis(layer), layer.geometry.inputs))
        found = behind(reader, value, vector)
        if found is None or not shifts_alike(reader):
            return ""
        value, vector = reader, found
    return ""


def _at(layer: Layer, index: Tensor | None) -> Beside | str:
    if index is None:
        return f"it does not vary along the channel axis of {layer.node.name}"
    return Beside(layer, index)
