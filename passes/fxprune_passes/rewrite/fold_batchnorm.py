"""Folds batch norm into the layer before it or after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from fxprune.editor import Editor
from fxprune.operands import get_argument
from fxprune.pipeline import Context, Rewrite
from fxprune.program import Program
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.affine_layer import (
    Layer,
    channel_axis,
    read_layer,
    scale_input,
    scale_output,
    shift_objection,
)
from fxprune_passes.rewrite.batch_norm import (
    Affine,
    eval_objection,
    read_affine,
    remove_batch_norm,
)
from fxprune_passes.rewrite.effects import Ownership


@dataclass(frozen=True)
class FoldBatchnorm(Rewrite):
    """Folds eval-mode batch norm into the convolution or linear layer before it, else after it. Exact.

    After it only where the layer is not padded, or the batch norm shifts by nothing. The layer keeps the
    name of its weight; a missing bias becomes a parameter. Batch norm in train mode stays.
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
            elif ctx.allow(node, f"folded into {place[0].node.name}", code="folded"):
                _fold(editor, node, *place)
        return editor.finish()


def _code(node: fx.Node) -> str:
    return "train-mode" if get_argument(node, "training") else "left"


def _place(editor: Editor, owners: Ownership, node: fx.Node) -> tuple[Layer, Affine] | str:
    """The layer that can take the batch norm up, or why there is none."""
    if why := eval_objection(node):
        return why
    affine = read_affine(editor, node)
    source = get_argument(node, "input")
    before = read_layer(source)
    why_before = _objection(owners, node, before, source, alone=source)
    if before is not None and not why_before:
        return before, affine
    reader = next(iter(node.users), None)
    after = read_layer(reader)
    after = after if after is not None and after.source is node else None
    why_after = _objection(owners, node, after, reader, alone=node)
    if after is not None and not why_after:
        why_after = shift_objection(after, affine.shift)
        if not why_after:
            return after, affine
    return f"before it: {why_before}; after it: {why_after}"


def _objection(
    owners: Ownership, node: fx.Node, layer: Layer | None, beside: fx.Node | None, alone: fx.Node
) -> str:
    """Why a batch norm cannot be folded into the layer beside it.

    Args:
        owners: who reads which tensor.
        node: the batch norm.
        layer: the node beside it as a layer.
        beside: that node itself.
        alone: the value between the two, which nothing else may read.
    """
    if layer is None:
        return _no_layer(beside)
    if len(alone.users) > 1:
        return f"{alone.name} has {len(alone.users)} readers"
    if channel_axis(layer) != 1:
        return f"the channels of {layer.node.name} are not those of the batch norm"
    if alone.meta["val"].dtype != (node if alone is not node else layer.node).meta["val"].dtype:
        return f"{layer.node.name} and the batch norm give different types"
    return owners.objection(*layer.tensors)


def _no_layer(beside: fx.Node | None) -> str:
    if beside is None:
        return "nothing reads it"
    if beside.op == "call_module":
        return f"{beside.target} is in between, and would see another value"
    if beside.op in ("placeholder", "output"):
        return f"an {'input' if beside.op == 'placeholder' else 'output'} of the network"
    return f"{beside.name} is no convolution or linear layer"


def _fold(editor: Editor, node: fx.Node, layer: Layer, affine: Affine) -> None:
    bias = get_argument(node, "bias")
    parameter = editor.tensor(str(bias.target)) if isinstance(bias, fx.Node) else None
    trained = parameter.requires_grad if isinstance(parameter, nn.Parameter) else None
    change = scale_input if layer.source is node else scale_output
    change(editor, layer, affine.scale, affine.shift, trained=trained)
    editor.replace(node, get_argument(node, "input"))
    remove_batch_norm(editor, node)  # a dead reader of the layer would bar the next batch norm
