"""Folds batch norms in eval mode into the preceding or the following layer."""

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
from fxprune_passes.rewrite.effects.ownership import Ownership
from fxprune_passes.rewrite.layers.affine_layer import Layer
from fxprune_passes.rewrite.layers.folded_scale import scale_input, scale_output, shift_objection
from fxprune_passes.rewrite.moves.moved_vector import Vector
from fxprune_passes.rewrite.scales.adjacent_layer import Beside, layer_before, layer_behind
from fxprune_passes.rewrite.scales.batch_norm import eval_objection, read_affine, remove_batch_norm

Tensor = torch.Tensor


@dataclass(frozen=True)
class FoldBatchnorm(Rewrite):
    """Folds batch norms in eval mode into the preceding or else the following layer. Exact.

    The layer is a convolution or a linear layer. Operators that only move or average numbers may lie between
    the two: views, permutations, pools. The following layer can absorb the batch norm only where the layer is
    not padded or the shift is 0. The layer keeps the name of its weight; a missing bias is added as a
    parameter. A batch norm in train mode stays.
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
                ctx.missed(node, "the batch norm stays", place, code=_code(node))
            elif ctx.allow(node, f"folded into {place.layer.node.name}", code="folded"):
                _fold(editor, node, place)
        return editor.finish()


@dataclass(frozen=True)
class _Place:
    """A layer that can absorb a batch norm.

    Attributes:
        layer: the layer.
        scale: the factor of each of its channels.
        shift: the number then added to each of its channels.
        is_before: whether the layer precedes the batch norm.
    """

    layer: Layer
    scale: Tensor
    shift: Tensor | None
    is_before: bool


def _code(node: fx.Node) -> str:
    return "train-mode" if get_argument(node, "training") else "left"


def _place(editor: Editor, owners: Ownership, node: fx.Node) -> _Place | str:
    """The layer that can absorb the batch norm, or the reason why there is none."""
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
    return f"preceding layer: {why_before}; following layer: {why_behind}"


def _objection(
    owners: Ownership, node: fx.Node, place: Beside | str, beside: fx.Node | None
) -> str:
    """Why a batch norm cannot be folded into a layer.

    Args:
        owners: the readers of each stored tensor.
        node: the batch norm.
        place: the layer, or the reason why there is none.
        beside: the node adjacent to the batch norm on the side of the layer.
    """
    if isinstance(place, str):
        return place or _no_layer(beside)
    if place.layer.node.meta["val"].dtype != node.meta["val"].dtype:
        return f"{place.layer.node.name} and the batch norm have different dtypes"
    return owners.objection(*place.layer.tensors)


def _no_layer(beside: fx.Node | None) -> str:
    if beside is None:
        return "no node reads the batch norm"
    if beside.op == "call_module":
        return f"{beside.target} lies in between and would read a different value"
    if beside.op in ("placeholder", "output"):
        return f"the batch norm is at an {'input' if beside.op == 'placeholder' else 'output'} of the network"
    return f"{beside.name} is not a convolution or linear layer"


def _fold(editor: Editor, node: fx.Node, place: _Place) -> None:
    bias = get_argument(node, "bias")
    parameter = editor.tensor(str(bias.target)) if isinstance(bias, fx.Node) else None
    trained = parameter.requires_grad if isinstance(parameter, nn.Parameter) else None
    change = scale_output if place.is_before else scale_input
    change(editor, place.layer, place.scale, place.shift, trained=trained)
    editor.replace(node, get_argument(node, "input"))
    remove_batch_norm(
        editor, node
    )  # as a reader of the layer it would prevent folding the next batch norm
