"""Reads a batch norm in eval mode as a scale and a shift of every channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument


@dataclass(frozen=True)
class Affine:
    """`scale * x + shift`, each `[channels]` in float64."""

    scale: torch.Tensor
    shift: torch.Tensor


def eval_objection(node: fx.Node) -> str:
    """Why a batch norm is not a fixed scale and shift; "" where it is."""
    mean, var = (get_argument(node, name) for name in ("running_mean", "running_var"))
    if get_argument(node, "training"):
        why = "it has no running statistics" if mean is None else "call eval() first"
        return f"it normalizes with the statistics of the batch: {why}"
    given = (get_argument(node, name) for name in ("weight", "bias"))
    tensors = [mean, var, *(t for t in given if t is not None)]
    if any(not isinstance(t, fx.Node) or t.op != "get_attr" for t in tensors):
        return "its statistics or its affine parameters are computed, not stored"
    return ""


def read_affine(editor: Editor, node: fx.Node) -> Affine:
    """The scale and the shift that a batch norm in eval mode applies."""
    mean, var = (_double(editor, get_argument(node, n)) for n in ("running_mean", "running_var"))
    weight, bias = (get_argument(node, name) for name in ("weight", "bias"))
    scale = (var + get_argument(node, "eps")).rsqrt()
    if weight is not None:
        scale = scale * _double(editor, weight)
    shift = -mean * scale
    if bias is not None:
        shift = shift + _double(editor, bias)
    return Affine(scale, shift)


def remove_batch_norm(editor: Editor, node: fx.Node) -> None:
    """Erases a batch norm without readers, and its batch counter unless another call needs it."""
    mean = get_argument(node, "running_mean")
    editor.graph.erase_node(node)
    if not mean.users:
        path = str(mean.target).rpartition(".")[0]
        editor.drop_tensor(f"{path}.num_batches_tracked".lstrip("."))


def _double(editor: Editor, node: fx.Node) -> torch.Tensor:
    return editor.tensor(str(node.target)).detach().double()
