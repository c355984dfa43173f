"""Finds the units that can be removed because they are constant wherever an operator sums over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx

from fxprune.analysis.axes import Axes
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Unit
from fxprune_passes.rewrite.constants.carried_constants import takes_map
from fxprune_passes.rewrite.constants.constant_units import Known
from fxprune_passes.rewrite.effects.ownership import Ownership
from fxprune_passes.rewrite.layers.affine_layer import channel_axis, read_layer
from fxprune_passes.rewrite.layers.folded_scale import shift_objection


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
    """

    units: set[Unit] = field(default_factory=set)
    refused: dict[fx.Node, str] = field(default_factory=dict)


def find_dead(
    program: Program, ctx: Context, known: Known, *, carry: bool, border: bool = False
) -> Candidates:
    """Finds the units that can be removed because they are constant.

    Args:
        program: the program.
        ctx: provides the labels of the program.
        known: the constant units of its values.
        carry: whether nonzero constants may be moved into biases.
        border: whether nonzero constants in front of a padded convolution may be stored as maps.
    """
    axes = ctx.axes(program)
    owners = Ownership(ctx.edit(program))
    touched = np.zeros(axes.n_units, bool)
    stays = np.zeros(axes.n_units, bool)
    found = Candidates()
    for use in uses_of_sums(axes):
        label = axes.final(axes.nodes[use.value][use.axis])
        values = known_values(known, use, len(label))
        objection = (
            _objection(use, owners, border) if carry else "only units that are 0 are removed"
        )
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


def uses_of_sums(axes: Axes) -> Iterator[Use]:
    """The uses of values by operators that sum over units."""
    for reader, marks in axes.marks.items():
        wanted = {id(x) for x in marks.silenced}
        for value in reader.all_input_nodes if wanted else ():
            labels = axes.nodes.get(value)
            if value.op == "get_attr" or not isinstance(labels, tuple):
                continue
            for axis, label in enumerate(labels):
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
