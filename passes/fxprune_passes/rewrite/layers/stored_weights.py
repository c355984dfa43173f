"""Reads and replaces the weight and bias of a layer: in float64, rounded once when they are stored."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.graph.editor import Editor
from fxprune.graph.operands import set_argument
from fxprune_passes.rewrite.layers.affine_layer import Layer

Tensor = torch.Tensor


def layer_weight(editor: Editor, layer: Layer) -> Tensor:
    """The weight of a layer in float64."""
    return editor.tensor(str(layer.weight.target)).detach().double()


def layer_bias(editor: Editor, layer: Layer) -> Tensor:
    """The bias of a layer in float64; zeros where it has none."""
    if layer.bias is None:
        return layer_weight(editor, layer).new_zeros(layer.geometry.outputs)
    return editor.tensor(str(layer.bias.target)).detach().double()


def is_zero(tensor: Tensor | None) -> bool:
    """Whether a tensor is known to contain only zeros; None counts as zeros."""
    return tensor is None or (not tensor.is_meta and not bool(tensor.any()))


def set_weight(editor: Editor, layer: Layer, weight: Tensor) -> None:
    """Replaces the weight of a layer under its name, in its dtype and memory layout."""
    old = editor.tensor(str(layer.weight.target))
    new = weight.to(old.dtype)
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if old.dim() == rank and new.dim() == rank and _only(old, layout):
            new = new.contiguous(memory_format=layout)
    editor.set_tensor(str(layer.weight.target), new)


def _only(tensor: Tensor, layout: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous()


def set_bias(editor: Editor, layer: Layer, bias: Tensor, *, trained: bool | None = None) -> None:
    """Replaces the bias of a layer; a layer without one gets a parameter `bias` next to its weight.

    Args:
        editor: the editor of the graph that contains the layer.
        layer: the layer, read from its node as it is now.
        bias: `[out]`.
        trained: whether a new parameter requires a gradient; None: if the weight does.
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
