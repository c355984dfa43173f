"""Folds batch norm into the layer before it or after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.affine_layer import (
    Layer,
    scale_input,
    scale_output,
    shift_objection,
)
from fxprune_passes.rewrite.batch_norm import eval_objection, read_affine, remove_batch_norm
from fxprune_passes.rewrite.beside import Beside, layer_before, layer_behind
from fxprune_passes.rewrite.effects import Ownership
from fxprune_passes.rewrite.moved_vector import Vector

Tensor = torch.Tensor


@dataclass(frozen=True)
class FoldBatchnorm(Rewrite):
    """Folds eval-mode batch norm into the convolution or linear layer before it, else after it. Exact.

    In between may be what only moves or averages numbers: views, permutations, pools. After it only where
    the layer is not padded, or the batch norm shifts by nothing. The layer keeps the name of its weight; a
    missing bias becomes a parameter. Batch norm in train mode stays.
    """

    name: ClassVar[str] = "fold-batchnorm"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        owners = Ownership(editor)
        for node in editor.nodes:
            if operator(node) != "batch_norm":
                continue
            place = _place(editor, owners, node)
            if isinstance(place, str):
                ctx.missed(node, "batch norm stays", place, code=_code(node))
            elif ctx.allow(node, f"folded into {place.layer.node.name}", code="folded"):
                _fold(editor, node, place)
        return editor.finish()


@dataclass(frozen=True)
class _Place:
    """A layer that can take a batch norm up.

    Attributes:
        layer: the layer.
        scale: what the batch norm multiplies each of its channels by.
        shift: what it adds then.
        is_before: whether the batch norm follows the layer.
    """

    layer: Layer
    scale: Tensor
    shift: Tensor | None
    is_before: bool


def _code(node: fx.Node) -> str:
    return "train-mode" if get_argument(node, "training") else "left"


def _place(editor: Editor, owners: Ownership, node: fx.Node) -> _Place | str:
    """The layer that can take the batch norm up, or why there is none."""
    if why := eval_objection(node):
        return why
    affine = read_affine(editor, node)
    vector = Vector.along(1, len(affine.scale))
    source = get_argument(node, "input")
    before = layer_before(source, vector)
    why_before = _objection(owners, node, before, source)
    if isinstance(before, Beside) and not why_before:
        return _Place(before.layer, *before.parts(affine.scale, affine.shift), is_before=True)
    behind = layer_behind(node, vector)
    why_behind = _objection(owners, node, behind, next(iter(node.users), None))
    if isinstance(behind, Beside) and not why_behind:
        scale, shift = behind.parts(affine.scale, affine.shift)
        why_behind = shift_objection(behind.layer, shift)
        if not why_behind:
            return _Place(behind.layer, scale, shift, is_before=False)
    return f"before it: {why_before}; after it: {why_behind}"


def _objection(
    owners: Ownership, node: fx.Node, place: Beside | str, beside: fx.Node | None
) -> str:
    """Why a batch norm cannot be folded into a layer.

    Args:
        owners: who reads which tensor.
        node: the batch norm.
        place: the layer, or why there is none.
        beside: the node right beside the batch norm.
    """
    if isinstance(place, str):
        return place or _no_layer(beside)
    if place.layer.node.meta["val"].dtype != node.meta["val"].dtype:
        return f"{place.layer.node.name} and the batch norm give different types"
    return owners.objection(*place.layer.tensors)


def _no_layer(beside: fx.Node | None) -> str:
    if beside is None:
        return "nothing reads it"
    if beside.op == "call_module":
        return f"{beside.target} is in between, and would see another value"
    if beside.op in ("placeholder", "output"):
        return f"an {'input' if beside.op == 'placeholder' else 'output'} of the network"
    return f"{beside.name} is no convolution or linear layer"


def _fold(editor: Editor, node: fx.Node, place: _Place) -> None:
    bias = get_argument(node, "bias")
    parameter = editor.tensor(str(bias.target)) if isinstance(bias, fx.Node) else None
    trained = parameter.requires_grad if isinstance(parameter, nn.Parameter) else None
    change = scale_output if place.is_before else scale_input
    change(editor, place.layer, place.scale, place.shift, trained=trained)
    editor.replace(node, get_argument(node, "input"))
    remove_batch_norm(editor, node)  # a dead reader of the layer would bar the next batch norm
