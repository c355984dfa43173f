"""The layer nearest to a value that can take up a scale and shift of it, seen through what only moves numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxprune.structure.paths import value_readers
from fxprune_passes.rewrite.affine_layer import Layer, channel_axis, read_layer
from fxprune_passes.rewrite.moved_vector import (
    Vector,
    before,
    behind,
    moved_value,
    pick,
    shifts_alike,
)

Tensor = torch.Tensor


@dataclass(frozen=True)
class Beside:
    """A layer that can take a scale and shift up.

    Attributes:
        layer: the layer.
        index: which entry of the scale and shift each of its channels has; -1: none.
    """

    layer: Layer
    index: Tensor

    def parts(self, scale: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both by the layer's channels."""
        return pick(scale, self.index, 1.0), None if shift is None else pick(shift, self.index, 0.0)


def layer_before(value: fx.Node, vector: Vector) -> Beside | str:
    """The layer whose output is a value, perhaps moved about; why there is none, "" where another node is."""
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
            return f"{value.name} puts it along other axes"
        value, vector = source, found


def layer_behind(value: fx.Node, vector: Vector) -> Beside | str:
    """The layer that reads a value, perhaps moved about; why there is none, "" where another node is."""
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
        return f"it varies along other axes than the channels of {layer.node.name}"
    return Beside(layer, index)
