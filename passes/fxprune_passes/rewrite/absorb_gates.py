"""Moves the values of gates into the weights beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import fx

from fxprune.editor import Editor
from fxprune.gate import Gate, gate_nodes, gates, spread
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


@dataclass(frozen=True)
class _Scale:
    """What a gate multiplies by: values `[n]` or `[]` along an axis, see `fxprune.gate.spread`."""

    values: Tensor
    axis: int | None
    tiled: bool

    def of(self, length: int) -> Tensor:
        """One value for each position, `[length]`."""
        return spread(self.values, length, tiled=self.tiled)

    def along(self, axis: int) -> bool:
        """Whether it can be a scale along this axis."""
        return self.axis in (None, axis)


def _change(
    editor: Editor, owners: Ownership, node: fx.Node, gate: Gate
) -> Callable[[], None] | str:
    """What moves a gate's values into weights, or why that cannot be done."""
    _, axis, _, tiled = (*node.args, None, None, False)[:4]
    scale = _Scale(gate.settled().double(), cast("int | None", axis), bool(tiled))
    before = _before(editor, owners, node, scale)
    if not isinstance(before, str):
        return before
    behind = _behind(editor, owners, node, scale)
    if not isinstance(behind, str):
        return behind
    return f"before it: {before}; behind it: {behind}"


def _before(
    editor: Editor, owners: Ownership, node: fx.Node, scale: _Scale
) -> Callable[[], None] | str:
    source = node.all_input_nodes[0]
    while True:
        if len(source.users) > 1:
            return f"{source.name} has {len(source.users)} readers"
        layer = read_layer(source)
        if layer is not None:
            if not scale.along(channel_axis(layer)):
                return f"the axis is not that of the channels of {source.name}"
            if why := owners.objection(*layer.tensors):
                return why
            return partial(scale_output, editor, layer, scale.of(layer.geometry.outputs), None)
        if operator(source) == "batch_norm":
            return _into_norm(editor, owners, source, scale)
        if not _commutes(source, scale):
            return f"{source.target} does not commute with the gate"
        source = source.all_input_nodes[0]


def _into_norm(
    editor: Editor, owners: Ownership, norm: fx.Node, scale: _Scale
) -> Callable[[], None] | str:
    tensors = [get_argument(norm, name) for name in ("weight", "bias")]
    if any(t is None for t in tensors) or not scale.along(1):
        return f"{norm.name} has no scale and shift along the gate's axis"
    if why := eval_objection(norm) or owners.objection(*tensors):
        return why

    def change() -> None:
        for name in (str(t.target) for t in tensors):
            old = editor.tensor(name)
            new = old.detach().double() * scale.of(old.numel())
            editor.set_tensor(name, new.to(old.dtype))

    return change


def _behind(
    editor: Editor, owners: Ownership, value: fx.Node, scale: _Scale
) -> Callable[[], None] | str:
    """Into every layer that reads the value, directly or through what commutes."""
    changes: list[Callable[[], None]] = []
    for reader in value.users:
        layer = read_layer(reader)
        if layer is not None and layer.source is value:
            if not scale.along(channel_axis(layer)):
                return f"the axis is not that of the channels of {reader.name}"
            if why := owners.objection(layer.weight):
                return why
            values = scale.of(layer.geometry.inputs)
            changes.append(partial(scale_input, editor, layer, values, None))
        elif _commutes(reader, scale):
            found = _behind(editor, owners, reader, scale)
            if isinstance(found, str):
                return found
            changes.append(found)
        else:
            return f"{reader.target} does not commute with the gate"

    def change() -> None:
        for one in changes:
            one()

    return change


def _commutes(node: fx.Node, scale: _Scale) -> bool:
    name = operator(node)
    if name in _MOVING:
        return scale.axis is None
    if name in _HOMOGENEOUS:
        return bool((scale.values >= 0).all())
    return name in _LINEAR
