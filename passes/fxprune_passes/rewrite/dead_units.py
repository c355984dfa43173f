"""Removes units that hold a constant; what they add to the layers behind them goes into the biases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import fx

from fxprune.analysis.axes import Axes, lost_positions
from fxprune.analysis.group import find_groups
from fxprune.graph.editor import Editor
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Keeps, Rewrite, Unit
from fxprune_passes.rewrite.affine_layer import (
    Layer,
    channel_axis,
    layer_bias,
    read_layer,
    set_bias,
    shift_objection,
)
from fxprune_passes.rewrite.carried_constants import carried, carried_map, takes_map
from fxprune_passes.rewrite.constant_units import Known, constant_units
from fxprune_passes.rewrite.effects import Ownership
from fxprune_passes.rewrite.seen import activations_seen


@dataclass(frozen=True, eq=False)
class _Use:
    """An axis of a value that some operator sums over."""

    reader: fx.Node
    value: fx.Node
    axis: int


@dataclass
class Candidates:
    """The units that are constant wherever they are summed over.

    Attributes:
        units: those that may go.
        refused: by reader, why units that are constant in what it reads stay.
    """

    units: set[Unit] = field(default_factory=set)
    refused: dict[fx.Node, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DeadUnits(Rewrite):
    """Removes units that are constant by their weights, whatever the network is given. Exact.

    A unit is constant where its layer's weights are all 0, where its batch norm's factor is 0, and where
    all that it is made of is constant. What it adds to a layer behind it is added to that layer's bias;
    a constant other than 0 in front of padding stays, since the padding does not have it.

    Attributes:
        border: whether such a constant may go too: what it adds to each position is stored as a map and added
            behind the convolution. The network is then one for images of this size.
    """

    name: ClassVar[str] = "dead-units"
    border: bool = False

    def rewrite(self, program: Program, ctx: Context) -> Program:
        if program.training:
            why = "in train mode a unit that is constant now may become another one"
            ctx.missed(
                program.name, "nothing was done", why, code="train-mode", do="call eval() first"
            )
            return program
        known = constant_units(program)
        found = find_dead(program, ctx, known, carry=True, border=self.border)
        return remove_dead(program, ctx, known, found)


@dataclass(frozen=True)
class DeadUnitsSeen(Rewrite):
    """Removes units that observers have never seen on, where an activation makes 0 of what is off.

    Exact on the data seen. On other data the result is the network with these units silenced, which is
    what its checks hold it against.
    """

    name: ClassVar[str] = "dead-units-seen"
    keeps: ClassVar[Keeps] = "silenced"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        seeds = {
            s.activation.node: s.constant()
            for s in activations_seen(program, ctx)
            if s.activation.zero_below
        }
        if not seeds:
            return program
        known = constant_units(program, seeds)
        return remove_dead(program, ctx, known, find_dead(program, ctx, known, carry=False))


def find_dead(
    program: Program, ctx: Context, known: Known, *, carry: bool, border: bool = False
) -> Candidates:
    """The units that may go.

    Args:
        program: what it is about.
        ctx: for the labels.
        known: constant units of values.
        carry: whether constants other than 0 may go into biases.
        border: whether, in front of padding, they may go into maps.
    """
    axes = ctx.axes(program)
    owners = Ownership(ctx.edit(program))
    touched = np.zeros(axes.n_units, bool)
    stays = np.zeros(axes.n_units, bool)
    found = Candidates()
    for use in _uses(axes):
        label = axes.final(axes.nodes[use.value][use.axis])
        values = _values(known, use, len(label))
        objection = _objection(use, owners, border) if carry else "only units of 0 go"
        goes = (values == 0) if objection else ~values.isnan()
        if carry and objection and bool((~values.isnan() & ~goes).any()):
            found.refused[use.reader] = objection
        for column in label.columns:
            touched[column] = True
            stays[column[~goes.numpy()]] = True
    for marks in axes.marks.values():
        for label in (*marks.statistics, *marks.rescaled):
            for column in axes.final(label).columns:
                stays[column] = True
    touched[0] = False
    found.units = set(np.flatnonzero(touched & ~stays).tolist())
    return found


def _uses(axes: Axes) -> Iterator[_Use]:
    for reader, marks in axes.marks.items():
        wanted = {id(x) for x in marks.silenced}
        for value in reader.all_input_nodes if wanted else ():
            labels = axes.nodes.get(value)
            if value.op == "get_attr" or not isinstance(labels, tuple):
                continue
            for axis, label in enumerate(labels):
                if id(label) in wanted:
                    yield _Use(reader, value, axis)


def _values(known: Known, use: _Use, length: int) -> torch.Tensor:
    found = known.get(use.value)
    if found is None or found.axis != use.axis or len(found.values) != length:
        return torch.full((length,), float("nan"))
    return found.values.cpu()


def _objection(use: _Use, owners: Ownership, border: bool) -> str:
    """Why a reader cannot take up a constant other than 0; "" where it can."""
    layer = read_layer(use.reader)
    if layer is None or layer.source is not use.value or channel_axis(layer) != use.axis:
        return f"{use.reader.target} has no bias to take the constant up"
    if layer.weight.op != "get_attr":
        return f"the weight of {use.reader.name} is computed"
    if border and takes_map(layer):
        return ""
    return shift_objection(layer, torch.ones(1)) or owners.objection(layer.bias)


def remove_dead(program: Program, ctx: Context, known: Known, found: Candidates) -> Program:
    """The program without the units that may go, group by group, their constants in the biases."""
    for reader, why in found.refused.items():
        ctx.missed(reader, "constant units of what it reads stay", why, code="stays")
    axes = ctx.axes(program)
    chosen: list[Unit] = []
    for group in find_groups(axes):
        dead = [u for u in group.units.tolist() if u in found.units]
        if dead and len(dead) == len(group):
            ctx.missed(group.name, "one of its units stays", "all are constant", code="last")
            dead = dead[1:]
        what = f"{len(dead)} of {len(group)} units"
        if dead and ctx.allow(group.name, what, code="removed", why="they are constant"):
            chosen += dead
    if not chosen:
        return program
    moved = dict(_moved(program, axes, known, chosen))
    small = ctx.remove(program, chosen)
    return _carry(small, ctx, moved)


def _moved(
    program: Program, axes: Axes, known: Known, chosen: Iterable[Unit]
) -> Iterator[tuple[str, torch.Tensor]]:
    """By name of a layer's node, what the units that go add to its outputs: `[out]`, or `[out, *positions]`."""
    gone = np.zeros(axes.n_units, bool)
    gone[list(chosen)] = True
    tensors = program.tensors()
    for use in _uses(axes):
        layer = read_layer(use.reader)
        if layer is None or layer.source is not use.value:
            continue
        label = axes.final(axes.nodes[use.value][use.axis])
        lost = torch.from_numpy(lost_positions(label, gone))
        values = torch.where(lost, _values(known, use, len(label)), 0.0)
        if bool(values.any()):
            weight = tensors[str(layer.weight.target)].detach().double()
            give = carried_map if any(layer.geometry.padding) else carried
            yield use.reader.name, give(weight, layer, values.to(weight))


def _carry(small: Program, ctx: Context, moved: dict[str, torch.Tensor]) -> Program:
    editor = ctx.edit(small)
    assert ctx.applied is not None
    for name, shift in moved.items():
        layer = read_layer(editor.node(name))
        assert isinstance(layer, Layer)
        kept = ctx.applied.kept.get(str(layer.weight.target), {}).get(0)
        shift = shift if kept is None else shift[torch.from_numpy(kept).to(shift.device)]
        if shift.dim() > 1:
            _add_map(editor, layer, shift)
        else:
            set_bias(editor, layer, layer_bias(editor, layer) + shift)
    return editor.finish()


def _add_map(editor: Editor, layer: Layer, shift: torch.Tensor) -> None:
    """Adds a stored map to what a layer gives."""
    weight, node = str(layer.weight.target), layer.node
    name = editor.free_name(f"{weight.rpartition('.')[0]}.border".lstrip("."))
    stored = editor.add_tensor(name, shift.to(editor.tensor(weight).dtype), before=node.next)
    total = editor.call(torch.ops.aten.add.Tensor, (node, stored), before=stored.next, like=node)
    editor.replace(node, total)
