"""Moves the values of gates into the weights beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import fx

from fxprune.editor import Editor
from fxprune.gate import Gate, gate_nodes, gates
from fxprune.operands import get_argument
from fxprune.pipeline import Context, Rewrite
from fxprune.program import Program
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.affine_layer import (
    channel_axis,
    read_layer,
    scale_input,
    scale_output,
)
from fxprune_passes.rewrite.batch_norm import eval_objection
from fxprune_passes.rewrite.effects import Ownership

Tensor = torch.Tensor

# f(g * x) = g * f(x), axis by axis: for any g, and for g >= 0.
_LINEAR = frozenset(
    (
        "alias avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d clone contiguous detach dropout feature_dropout neg"
    ).split(" ")
)
_HOMOGENEOUS = frozenset(
    "adaptive_max_pool2d leaky_relu max_pool1d max_pool2d max_pool3d prelu relu".split(" ")
)
_MOVING = frozenset(
    "_unsafe_view flatten permute reshape squeeze transpose unflatten unsqueeze view".split(" ")
)


@dataclass(frozen=True)
class AbsorbGates(Rewrite):
    """Multiplies the weights before a gate, else those behind it, by its values. Exact in eval mode.

    Between the gate and the layer may be what commutes with a scale: pooling, dropout, and, where no gate is
    negative, ReLU and maxima; for a gate on a whole value reshapes too. Bernoulli gates count with their
    expectation.
    """

    name: ClassVar[str] = "absorb-gates"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        owners = Ownership(editor)
        places = gate_nodes(program)
        for path, gate in gates(program).items():
            nodes = [editor.node(n) for n in places[path]]
            changes = [_change(editor, owners, node, gate) for node in nodes]
            reason = next((c for c in changes if isinstance(c, str)), "")
            if program.training and gate.kind == "bernoulli":
                reason = "it samples in train mode; call eval() first"
            if reason:
                ctx.missed(places[path][0], f"{path} stays", reason, code="left")
            elif ctx.allow(places[path][0], f"{path} went into weights", code="absorbed"):
                for node, change in zip(nodes, changes, strict=True):
                    cast("Callable[[], None]", change)()
                    editor.replace(node, node.all_input_nodes[0])
        return editor.finish()


def _change(
    editor: Editor, owners: Ownership, node: fx.Node, gate: Gate
) -> Callable[[], None] | str:
    """What moves a gate's values into weights, or why that cannot be done."""
    values = gate.settled().double()
    axis = cast("int | None", node.args[1]) if len(node.args) > 1 else None
    before = _before(editor, owners, node, values, axis)
    if not isinstance(before, str):
        return before
    behind = _behind(editor, owners, node, values, axis)
    if not isinstance(behind, str):
        return behind
    return f"before it: {before}; behind it: {behind}"


def _before(
    editor: Editor, owners: Ownership, node: fx.Node, values: Tensor, axis: int | None
) -> Callable[[], None] | str:
    source = node.all_input_nodes[0]
    while True:
        if len(source.users) > 1:
            return f"{source.name} has {len(source.users)} readers"
        layer = read_layer(source)
        if layer is not None:
            if axis is not None and axis != channel_axis(layer):
                return f"the axis is not that of the channels of {source.name}"
            if why := owners.objection(*layer.tensors):
                return why
            scale = values.expand(layer.geometry.outputs)
            return partial(scale_output, editor, layer, scale, None)
        if operator(source) == "batch_norm":
            return _into_norm(editor, owners, source, values, axis)
        if not _commutes(source, values, axis):
            return f"{source.target} does not commute with the gate"
        source = source.all_input_nodes[0]


def _into_norm(
    editor: Editor, owners: Ownership, norm: fx.Node, values: Tensor, axis: int | None
) -> Callable[[], None] | str:
    tensors = [get_argument(norm, name) for name in ("weight", "bias")]
    if any(t is None for t in tensors) or axis not in (None, 1):
        return f"{norm.name} has no scale and shift along the gate's axis"
    if why := eval_objection(norm) or owners.objection(*tensors):
        return why

    def change() -> None:
        for name in (str(t.target) for t in tensors):
            old = editor.tensor(name)
            editor.set_tensor(name, (old.detach().double() * values).to(old.dtype))

    return change


def _behind(
    editor: Editor, owners: Ownership, value: fx.Node, values: Tensor, axis: int | None
) -> Callable[[], None] | str:
    """Into every layer that reads the value, directly or through what commutes."""
    changes: list[Callable[[], None]] = []
    for reader in value.users:
        layer = read_layer(reader)
        if layer is not None and layer.source is value:
            if axis is not None and axis != channel_axis(layer):
                return f"the axis is not that of the channels of {reader.name}"
            if why := owners.objection(layer.weight):
                return why
            scale = values.expand(layer.geometry.inputs)
            changes.append(partial(scale_input, editor, layer, scale, None))
        elif _commutes(reader, values, axis):
            found = _behind(editor, owners, reader, values, axis)
            if isinstance(found, str):
                return found
            changes.append(found)
        else:
            return f"{reader.target} does not commute with the gate"

    def change() -> None:
        for one in changes:
            one()

    return change


def _commutes(node: fx.Node, values: Tensor, axis: int | None) -> bool:
    name = operator(node)
    if name in _MOVING:
        return axis is None
    if name in _HOMOGENEOUS:
        return bool((values >= 0).all())
    return name in _LINEAR
