"""Convolutions and linear layers in one form, and what is folded into their weights.

A linear layer is a convolution without spatial axes. Weights are worked with in float64 and rounded
once, when they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument, set_argument
from fxprune.structure.paths import operator

Tensor = torch.Tensor

_KINDS = frozenset(
    ("linear", "convolution", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)))
)


@dataclass(frozen=True)
class Geometry:
    """Which inputs an output is a sum over; the tuples have one entry per spatial axis.

    Output `t` reads the inputs at `t*stride - padding + j*dilation` for `j < kernel`.
    """

    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def spatial(self) -> int:
        """How many spatial axes there are; 0 for a linear layer."""
        return len(self.kernel)


@dataclass(frozen=True)
class Layer:
    """One call of a convolution or linear layer.

    Attributes:
        node: the call.
        source: what it reads.
        weight: `[out, in/g, *k]`; transposed: `[in, out/g, *k]`.
        bias: `[out]`.
        geometry: of the call; a transposed one reads it from output to input.
        transposed: whether it is a transposed convolution.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    geometry: Geometry
    transposed: bool

    @property
    def axis(self) -> int:
        """The axis of channels in input and output, counted from the end."""
        return -1 - self.geometry.spatial

    @property
    def tensors(self) -> tuple[fx.Node | None, ...]:
        """Weight and bias."""
        return self.weight, self.bias


def read_layer(node: Any) -> Layer | None:
    """A node as a layer; None where it is none, or one whose padding is not the same on both sides."""
    if not isinstance(node, fx.Node) or operator(node) not in _KINDS:
        return None
    source, weight, bias = (get_argument(node, name) for name in ("input", "weight", "bias"))
    shape = weight.meta["val"].shape
    linear = operator(node) == "linear"
    if len(shape) < 2:
        return None
    transposed = "transpose" in operator(node) or (
        operator(node) == "convolution" and bool(get_argument(node, "transposed"))
    )
    groups = 1 if linear else get_argument(node, "groups")
    window = _window(node, tuple(shape[2:]))
    if window is None:
        return None
    first, second = shape[0], shape[1] * groups
    inputs, outputs = (first, second) if transposed else (second, first)
    geometry = Geometry(inputs, outputs, groups, tuple(shape[2:]), *window)
    return Layer(node, source, weight, bias, geometry, transposed)


def _window(
    node: fx.Node, kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Stride, padding and dilation as numbers."""
    if not kernel:
        return (), (), ()
    stride, padding, dilation = (get_argument(node, n) for n in ("stride", "padding", "dilation"))
    dilation = _spread(dilation, len(kernel))
    if padding == "valid":
        padding = [0]
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    found = _spread(stride, len(kernel)), _spread(padding, len(kernel)), dilation
    return found if all(isinstance(x, int) for part in found for x in part) else None


def _spread(value: Any, length: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values


def layer_weight(editor: Editor, layer: Layer) -> Tensor:
    """The weight in float64."""
    return editor.tensor(str(layer.weight.target)).detach().double()


def layer_bias(editor: Editor, layer: Layer) -> Tensor:
    """The bias in float64, zeros where there is none."""
    if layer.bias is None:
        return layer_weight(editor, layer).new_zeros(layer.geometry.outputs)
    return editor.tensor(str(layer.bias.target)).detach().double()


def is_zero(tensor: Tensor | None) -> bool:
    """Whether a tensor is known to hold nothing but zeros; None is nothing."""
    return tensor is None or (not tensor.is_meta and not bool(tensor.any()))


def set_weight(editor: Editor, layer: Layer, weight: Tensor) -> None:
    """Stores another weight under the old name, in the old type and memory layout."""
    old = editor.tensor(str(layer.weight.target))
    new = weight.to(old.dtype)
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if old.dim() == rank and new.dim() == rank and _only(old, layout):
            new = new.contiguous(memory_format=layout)
    editor.set_tensor(str(layer.weight.target), new)


def _only(tensor: Tensor, layout: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous()


def set_bias(editor: Editor, layer: Layer, bias: Tensor, *, trained: bool | None = None) -> None:
    """Stores another bias; a layer without one gets a parameter `bias` beside its weight.

    Args:
        editor: holds the layer.
        layer: as its node is now.
        bias: `[out]`.
        trained: whether a new parameter requires a gradient; None: where the weight does.
    """
    if layer.bias is not None:
        old = editor.tensor(str(layer.bias.target))
        editor.set_tensor(str(layer.bias.target), bias.to(old.dtype))
        return
    weight = editor.tensor(str(layer.weight.target))
    tensor = bias.to(weight.dtype)
    if isinstance(weight, nn.Parameter):
        tensor = nn.Parameter(tensor, weight.requires_grad if trained is None else trained)
    name = f"{str(layer.weight.target).rpartition('.')[0]}.bias".lstrip(".")
    node = editor.add_tensor(editor.free_name(name), tensor, before=layer.node)
    set_argument(layer.node, "bias", node)


def scale_output(
    editor: Editor,
    layer: Layer,
    scale: Tensor,
    shift: Tensor | None,
    *,
    trained: bool | None = None,
) -> None:
    """Lets a layer give `scale * y + shift` in place of `y`; both `[out]` in float64."""
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
    """Lets a layer make of `x` what it made of `scale * x + shift`; both `[in]` in float64.

    Exact where `shift_objection` has nothing against the shift.
    """
    weight = layer_weight(editor, layer)
    if not is_zero(shift):
        assert shift is not None
        spatial = tuple(range(2, weight.dim()))
        moved = (weight * _along_inputs(layer, shift)).sum((1, *spatial))
        set_bias(editor, layer, layer_bias(editor, layer) + moved, trained=trained)
    set_weight(editor, layer, weight * _along_inputs(layer, scale))


def shift_objection(layer: Layer, shift: Tensor | None) -> str:
    """Why a layer cannot take up a shift of its input; "" where it can."""
    if is_zero(shift):
        return ""
    if layer.transposed:
        return "a transposed convolution sums fewer terms at its border, and the shift is not zero"
    if any(layer.geometry.padding):
        return "the layer pads with zeros that the shift does not reach, and the shift is not zero"
    return ""


def _along_outputs(layer: Layer, values: Tensor) -> Tensor:
    """Values of the outputs in a shape that multiplies the weight."""
    g = layer.geometry
    ones = (1,) * g.spatial
    if not layer.transposed:
        return values.reshape(-1, 1, *ones)
    return _by_group(values, g.groups, g.inputs, *ones)


def _along_inputs(layer: Layer, values: Tensor) -> Tensor:
    """Values of the inputs in a shape that multiplies the weight."""
    g = layer.geometry
    ones = (1,) * g.spatial
    if layer.transposed:
        return values.reshape(-1, 1, *ones)
    return _by_group(values, g.groups, g.outputs, *ones)


def _by_group(values: Tensor, groups: int, rows: int, *ones: int) -> Tensor:
    """`[rows, n/groups, ...]`: each row has the values of its group."""
    table = values.reshape(groups, -1).repeat_interleave(rows // groups, 0)
    return table.reshape(rows, -1, *ones)


def channel_axis(layer: Layer) -> int:
    """The axis of channels in the layer's input and output, counted from the start."""
    return cast(int, layer.node.meta["val"].dim()) + layer.axis
