"""Finds the units that can be removed because they are constant wherever an operator sums over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.graph.program import Program, describe
from fxprune.pipeline import Context, Unit
from fxprune.structure.paths import operator
from fxprune.structure.zeros import CONTRACTIONS, RECURRENT
from fxprune_passes.rewrite.constants.carried_constants import takes_map
from fxprune_passes.rewrite.constants.constant_units import Known
from fxprune_passes.rewrite.effects.ownership import Ownership
from fxprune_passes.rewrite.layers.affine_layer import channel_axis, read_layer
from fxprune_passes.rewrite.layers.folded_scale import shift_objection
from fxprune_passes.rewrite.scales.mean_square import is_mean_square


@dataclass(frozen=True, eq=False)
class Use:
    """An axis of a value over which an operator sums."""

    reader: fx.Node
    value: fx.Node
    axis: int


@dataclass
class Candidates:
    """The units that are constant at every operator that sums over them.

    Attributes:
        units: the units that can be removed.
        refused: for each reader of constant units that cannot be removed, the reason.
        stays: the units that some reader keeps, with the reader and the reason.
    """

    units: set[Unit] = field(default_factory=set)
    refused: dict[fx.Node, str] = field(default_factory=dict)
    stays: list[tuple[IntArray, fx.Node, str]] = field(default_factory=list)

    def why(self, units: Iterable[Unit]) -> str:
        """Where and why the first reader that keeps some of the units does so."""
        wanted = list(units)
        for kept, reader, reason in self.stays:
            if np.isin(wanted, kept).any():
                return f"{describe(reader)} {reason}"
        return "no operator sums over them"


def find_dead(
    program: Program,
    ctx: Context,
    known: Known,
    *,
    carry: bool,
    norms: bool = False,
    border: bool = False,
) -> Candidates:
    """Finds the units that can be removed because they are constant.

    Args:
        program: the program.
        ctx: provides the labels of the program.
        known: the constant units of its values.
        carry: whether nonzero constants may be moved into biases.
        norms: whether norms that take a mean square may be scaled to make up for units that are 0.
        border: whether nonzero constants in front of a padded convolution may be stored as maps.
    """
    search = _Search(program, ctx, known, carry, norms, border)
    touched = np.zeros(search.axes.n_units, bool)
    stays = np.zeros(search.axes.n_units, bool)
    for reader in search.axes.marks:
        for kept, why in (*_kept_by_sum(search, reader, touched), *_kept_by_norm(search, reader)):
            kept[0] = False
            if kept.any():
                search.found.stays.append((np.flatnonzero(kept), reader, why))
            stays |= kept
    touched[0] = False
    search.found.units = set(np.flatnonzero(touched & ~stays).tolist())
    return search.found


class _Search:
    def __init__(
        self,
        program: Program,
        ctx: Context,
        known: Known,
        carry: bool,
        norms: bool,
        border: bool,
    ) -> None:
        self.axes = ctx.axes(program)
        self.owners = Ownership(ctx.edit(program))
        self.tensors = program.tensors()
        self.known, self.carry, self.norms, self.border = known, carry, norms, border
        self.found = Candidates()


def _kept_by_sum(
    search: _Search, reader: fx.Node, touched: BoolArray
) -> list[tuple[BoolArray, str]]:
    """The units that a sum would miss; marks all units that it sums over in `touched`."""
    name, axes = operator(reader), search.axes
    reached = np.zeros(axes.n_units, bool)
    kept = np.zeros(axes.n_units, bool)
    covered = np.zeros(axes.n_units, bool)
    for use in uses_of(axes, reader):
        stored = use.value.op == "get_attr"
        if stored and name in CONTRACTIONS | RECURRENT:
            continue
        label = axes.final(axes.nodes[use.value][use.axis])
        goes = _goes(search, use, len(label))
        if name in RECURRENT and use.value is not reader.args[0]:
            goes = np.zeros(len(label), bool)
        here = np.zeros(axes.n_units, bool)
        lost = np.zeros(axes.n_units, bool)
        for column in label.columns:
            here[column] = True
            lost[column[~goes]] = True
        reached |= here
        kept |= lost
        covered |= here & ~lost
    if name in CONTRACTIONS:
        kept &= ~covered
    touched |= reached
    return [(kept, _reason(search, reader, name))] if kept.any() else []


def _reason(search: _Search, reader: fx.Node, name: str) -> str:
    if name in RECURRENT:
        return "computes them from their own earlier values"
    if objection := search.found.refused.get(reader):
        return f"reads a constant other than 0 of them, and {objection}"
    return "reads them where they are not 0"


def _kept_by_norm(search: _Search, reader: fx.Node) -> list[tuple[BoolArray, str]]:
    """The units whose removal changes the statistics of a norm."""
    axes, marks = search.axes, search.axes.marks[reader]
    kept = np.zeros(axes.n_units, bool)
    scaled = search.norms and is_mean_square(reader)
    for label in marks.statistics:
        final = axes.final(label)
        goes = np.zeros(len(final), bool)
        if scaled:
            goes = _zeros_at(search, reader, label, final)
        for column in final.columns:
            kept[column[~goes]] = True
    why = (
        "takes a mean square over them, where they are not 0"
        if scaled
        else "takes statistics over them, which would be others without them"
    )
    return [(kept, why)] if kept.any() else []


def _zeros_at(search: _Search, reader: fx.Node, label: Label, final: Label) -> BoolArray:
    """The positions of an axis of the first operand of a norm that are 0."""
    value = reader.args[0]
    assert isinstance(value, fx.Node)
    axis = next(i for i, x in enumerate(search.axes.nodes[value]) if x is label)
    zero: BoolArray = (
        known_values(search.known, Use(reader, value, axis), len(final)) == 0
    ).numpy()
    return zero


def _goes(search: _Search, use: Use, length: int) -> BoolArray:
    """The positions of a used axis that the reader does not miss, or whose constant it can take up."""
    if use.value.op == "get_attr":
        return _zero_positions(search.tensors.get(str(use.value.target)), use.axis, length)
    values = known_values(search.known, use, length)
    if not search.carry:
        return np.asarray(values == 0)
    objection = _objection(use, search.owners, search.border)
    goes = (values == 0) if objection else ~values.isnan()
    if objection and bool((~values.isnan() & ~goes).any()):
        search.found.refused[use.reader] = objection
    return np.asarray(goes)


def _zero_positions(tensor: torch.Tensor | None, axis: int, length: int) -> BoolArray:
    if tensor is None or tensor.is_meta:
        return np.zeros(length, bool)
    rows = tensor.detach().movedim(axis, 0).reshape(length, -1)
    return np.asarray((rows == 0).all(1).cpu())


def uses_of_sums(axes: Axes) -> Iterator[Use]:
    """The uses of computed values by operators that sum over units."""
    for reader in axes.marks:
        yield from (use for use in uses_of(axes, reader) if use.value.op != "get_attr")


def uses_of(axes: Axes, reader: fx.Node) -> Iterator[Use]:
    """The uses of computed and stored values by one operator."""
    wanted = {id(x) for x in axes.marks[reader].silenced}
    for value in reader.all_input_nodes if wanted else ():
        labels: Any = axes.nodes.get(value)
        for axis, label in enumerate(labels if isinstance(labels, tuple) else ()):
            if id(label) in wanted:
                yield Use(reader, value, axis)


def known_values(known: Known, use: Use, length: int) -> torch.Tensor:
    """The constant of each position of a used axis; NaN where it varies."""
    found = known.get(use.value)
    if found is None or found.axis != use.axis or len(found.values) != length:
        return torch.full((length,), float("nan"))
    return found.values.cpu()


def _objection(use: Use, owners: Ownership, border: bool) -> str:
    """Why a reader cannot absorb a nonzero constant; "" where it can."""
    layer = read_layer(use.reader)
    if layer is None or layer.source is not use.value or channel_axis(layer) != use.axis:
        return f"{use.reader.target} has no bias that could absorb the constant"
    if layer.weight.op != "get_attr":
        return f"the weight of {use.reader.name} is computed, not stored"
    if border and takes_map(layer):
        return ""
    return shift_objection(layer, torch.ones(1)) or owners.objection(layer.bias)
