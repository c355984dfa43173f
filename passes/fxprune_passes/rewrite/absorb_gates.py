"""Moves the values of gates into the weights of adjacent layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, cast

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.gate import Gate, gate_nodes, gates, spread
from fxprune.graph.operands import get_argument
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune.structure.paths import operator, value_readers
from fxprune_passes.rewrite.effects.ownership import Ownership
from fxprune_passes.rewrite.layers.affine_layer import channel_axis, read_layer
from fxprune_passes.rewrite.layers.folded_scale import scale_input, scale_output
from fxprune_passes.rewrite.moves.moved_vector import Vector, before, behind, pick
from fxprune_passes.rewrite.moves.moving_operators import is_split, moved_value
from fxprune_passes.rewrite.scales.batch_norm import eval_objection

Tensor = torch.Tensor

# f(g * x) = g * f(x) for g >= 0.
_HOMOGENEOUS = frozenset(("leaky_relu", "prelu", "relu"))


@dataclass(frozen=True)
class AbsorbGates(Rewrite):
    """Multiplies the weights of the layer before a gate, or of all layers after it, by its values. Exact in eval mode.

    Operators that commute with a scale may lie between the gate and the layer: views and permutations, splits
    and concatenations, pooling, dropout, products with other values and, where no gate is negative, ReLU and
    maxima. A Bernoulli gate contributes its expectation.
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
                reason = "the gate is sampled in train mode; call eval() first"
            if reason:
                ctx.missed(places[path][0], f"gate {path} stays", reason, code="left")
            elif ctx.allow(
                places[path][0], f"moved the values of gate {path} into weights", code="absorbed"
            ):
                for node, change in zip(nodes, changes, strict=True):
                    cast("Callable[[], None]", change)()
                    editor.replace(node, node.all_input_nodes[0])
        return editor.finish()


@dataclass(frozen=True)
class _Scale:
    """The values of a gate, and how they are assigned to the positions of the value being examined."""

    values: Tensor
    vector: Vector

    def over(self, axis: int, length: int) -> Tensor | None:
        """One value for each position of an axis; None where they lie along another axis."""
        index = self.vector.over(axis, length)
        return None if index is None else pick(self.values, index, 1.0)


def _change(
    editor: Editor, owners: Ownership, node: fx.Node, gate: Gate
) -> Callable[[], None] | str:
    """A function that moves the values of a gate into weights, or the reason why none can."""
    _, axis, _, tiled = (*node.args, None, None, False)[:4]
    values, vector = gate.settled().double(), Vector.of_one()
    if axis is not None:
        length = node.meta["val"].shape[axis]
        values = spread(values, length, tiled=bool(tiled))
        vector = Vector.along(cast(int, axis) % node.meta["val"].dim(), length)
    scale = _Scale(values, vector)
    ahead = _before(editor, owners, node, scale)
    if not isinstance(ahead, str):
        return ahead
    back = _behind(editor, owners, node, scale)
    if not isinstance(back, str):
        return back
    return f"before the gate: {ahead}; after the gate: {back}"


def _before(
    editor: Editor, owners: Ownership, node: fx.Node, scale: _Scale
) -> Callable[[], None] | str:
    source = node.all_input_nodes[0]
    while True:
        if (count := len(value_readers(source))) > 1:
            return f"{source.name} has {count} readers"
        layer = read_layer(source)
        if layer is not None:
            values = scale.over(channel_axis(layer), layer.geometry.outputs)
            if values is None:
                return f"the gate does not lie along the channel axis of {source.name}"
            if why := owners.objection(*layer.tensors):
                return why
            return partial(scale_output, editor, layer, values, None)
        if operator(source) == "batch_norm":
            return _into_norm(editor, owners, source, scale)
        operand, vector = _operand(source, scale), _vector_before(source, scale)
        if operand is None or vector is None:
            return f"{_name(source)} does not commute with the gate"
        source, scale = operand, replace(scale, vector=vector)


def _into_norm(
    editor: Editor, owners: Ownership, norm: fx.Node, scale: _Scale
) -> Callable[[], None] | str:
    tensors = [get_argument(norm, name) for name in ("weight", "bias")]
    values = scale.over(1, norm.meta["val"].shape[1])
    if any(t is None for t in tensors) or values is None:
        return f"{norm.name} has no scale and shift along the axis of the gate"
    if why := eval_objection(norm) or owners.objection(*tensors):
        return why

    def change() -> None:
        for name in (str(t.target) for t in tensors):
            old = editor.tensor(name)
            new = old.detach().double() * values
            editor.set_tensor(name, new.to(old.dtype))

    return change


def _behind(
    editor: Editor, owners: Ownership, value: fx.Node, scale: _Scale
) -> Callable[[], None] | str:
    """Folds a scale into every layer that reads the value, directly or through operators that commute with it."""
    changes: list[Callable[[], None]] = []
    for reader in _readers(value):
        layer = read_layer(reader)
        if layer is not None and layer.source is value:
            values = scale.over(channel_axis(layer), layer.geometry.inputs)
            if values is None:
                return f"the gate does not lie along the channel axis of {reader.name}"
            if why := owners.objection(layer.weight):
                return why
            changes.append(partial(scale_input, editor, layer, values, None))
            continue
        vector = _vector_behind(reader, value, scale)
        if vector is None:
            return f"{_name(reader)} does not commute with the gate"
        found = _behind(editor, owners, reader, replace(scale, vector=vector))
        if isinstance(found, str):
            return found
        changes.append(found)

    def change() -> None:
        for one in changes:
            one()

    return change


def _readers(value: fx.Node) -> Iterator[fx.Node]:
    """The readers of a value, where the parts of a split replace the split."""
    for reader in value_readers(value):
        yield from reader.users if is_split(reader) else (reader,)


def _operand(node: fx.Node, scale: _Scale) -> fx.Node | None:
    """An operand of a node such that scaling it scales the result alike; None where there is none."""
    candidates = (n for n in (moved_value(node), *node.all_input_nodes) if n is not None)
    return next((n for n in candidates if n.op != "get_attr" and _hands_on(node, n, scale)), None)


def _hands_on(node: fx.Node, operand: fx.Node, scale: _Scale) -> bool:
    """Whether scaling an operand scales the result alike."""
    name = operator(node)
    if "max_pool" in name or name in _HOMOGENEOUS:
        return node.args[0] is operand and bool((scale.values >= 0).all())
    if name in ("mul", "div"):
        factors = node.args[:2] if name == "mul" else node.args[:1]
        once = list(node.args[:2]).count(operand) == 1
        return operand in factors and once and _alike(operand, node)
    return name == "neg" or moved_value(node) is operand


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return [str(n) for n in a.meta["val"].shape] == [str(n) for n in b.meta["val"].shape]


def _vector_before(node: fx.Node, scale: _Scale) -> Vector | None:
    return scale.vector if moved_value(node) is None else before(node, scale.vector)


def _vector_behind(node: fx.Node, operand: fx.Node, scale: _Scale) -> Vector | None:
    joins = operator(node) in ("cat", "concat")
    if not joins and not _hands_on(node, operand, scale):
        return None
    moves = joins or moved_value(node) is not None
    return behind(node, operand, scale.vector) if moves else scale.vector


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_function" else node.name
