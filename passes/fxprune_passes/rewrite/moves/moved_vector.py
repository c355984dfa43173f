"""Where a vector along one axis of a value lies after the value has been moved, split, joined or pooled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from operator import getitem
from typing import Any, cast

import torch
from torch import fx

from fxprune.algebra.reshape import runs
from fxprune.graph.operands import get_argument
from fxprune.graph.sizes import Sizes
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.moves.moving_operators import (
    CUTS,
    PERMUTATIONS,
    POOLS,
    VIEWS,
    moved_value,
)

Tensor = torch.Tensor


@dataclass(frozen=True)
class Vector:
    """How the entries of a vector are assigned to the positions of a value.

    Attributes:
        axis: the axis of the value along which the entries lie; None: one entry applies to the whole value.
        index: `[length of the axis]`, the entry of each position; -1 where it has none.
    """

    axis: int | None
    index: Tensor

    @classmethod
    def along(cls, axis: int, length: int) -> Vector:
        """A vector with one entry for each position of an axis."""
        return cls(axis, torch.arange(length))

    @classmethod
    def of_one(cls) -> Vector:
        """A vector whose one entry applies to the whole value."""
        return cls(None, torch.zeros(1, dtype=torch.int64))

    def over(self, axis: int, length: int) -> Tensor | None:
        """The entry of each position of an axis; None where the vector lies along another axis."""
        if self.axis is None:
            return self.index.expand(length)
        return self.index if self.axis == axis and len(self.index) == length else None


def pick(values: Tensor, index: Tensor, nothing: float) -> Tensor:
    """The entry of each position, or `nothing` where it has none; a vector of one entry applies to all."""
    found = values.reshape(-1)[index.clamp(0, values.numel() - 1).to(values.device)]
    return torch.where(index.to(values.device) < 0, nothing, found)


def before(node: fx.Node, result: Vector) -> Vector | None:
    """The vector over the operand of a node that becomes the given one over its result; None if there is none."""
    source = moved_value(node)
    if source is None:
        return None
    if node.target is getitem:
        return _whole_of_part(node, source, result)
    if result.axis is None:
        return result
    if operator(node) in VIEWS:
        return _viewed(node, source, result)
    axes = _axes(node, source)
    axis = axes[result.axis]
    return None if axis is None else replace(result, axis=axis)


def behind(node: fx.Node, operand: fx.Node, given: Vector) -> Vector | None:
    """The vector over the result of a node that a given one over its operand becomes; None if there is none."""
    if operator(node) in ("cat", "concat"):
        return _joined(node, operand, given)
    source = moved_value(node)
    if source is not operand or given.axis is None:
        return None if source is not operand else given
    if node.target is getitem:
        start, stop, axis = _part(node)
        return replace(given, index=given.index[start:stop]) if axis == given.axis else given
    if operator(node) in VIEWS:
        return _viewed(source, node, given)
    axes = _axes(node, source)
    return replace(given, axis=axes.index(given.axis)) if given.axis in axes else None


def _axes(node: fx.Node, source: fx.Node) -> list[int | None]:
    """For each axis of the result the source axis it is; None where positions are averaged or left out."""
    rank, name = source.meta["val"].dim(), operator(node)
    order: list[int | None] = list(range(rank))
    if name == "permute":
        return [d % rank for d in get_argument(node, "dims")]
    if name in PERMUTATIONS:
        a, b = (cast(int, d) % rank for d in node.args[1:3])
        order[a], order[b] = b, a
    if name in CUTS:
        order[get_argument(node, "dim") % rank] = None
    if name in POOLS:
        order[rank - POOLS[name] :] = [None] * POOLS[name]
    if name == "mean":
        dims = {d % rank for d in get_argument(node, "dim") or range(rank)}
        kept = get_argument(node, "keepdim")
        order = [None if i in dims else i for i in range(rank) if kept or i not in dims]
    return order


def _viewed(source: fx.Node, result: fx.Node, given: Vector) -> Vector | None:
    """The vector over a view of a value, given one over the value."""
    assert given.axis is not None
    sizes = Sizes.of_graph(source.graph)
    old, new = (sizes.shape(n.meta["val"]) for n in (source, result))
    tail = old[given.axis :]
    if new[len(new) - len(tail) :] == tail:
        return replace(given, axis=len(new) - len(tail))
    # A symbolic length was divided, and the prime that stands in for it leaves a remainder.
    if prod(old) != prod(new):
        return None
    for a, b in runs(old, new):
        if a.start <= given.axis < a.stop:
            ones = [1] * (a.stop - a.start)
            ones[given.axis - a.start] = -1
            grid = given.index.view(ones).expand(old[a]).reshape(new[b] or [1])
            return _along_one(grid, b.start, result.meta["val"])
    return None


def _along_one(grid: Tensor, first: int, value: Tensor) -> Vector | None:
    """A grid over some axes of a value as a vector along one axis; None where it varies along several."""
    varies = [i for i in range(grid.dim()) if not bool((grid == grid.narrow(i, 0, 1)).all())]
    if len(varies) > 1 or first + grid.dim() > value.dim():
        return None
    axis = varies[0] if varies else 0
    if not isinstance(value.shape[first + axis], int):
        return None
    return Vector(first + axis, grid.movedim(axis, 0).flatten(1)[:, 0] if grid.dim() > 1 else grid)


def _part(node: fx.Node) -> tuple[int, int, int]:
    """The start, the end and the axis of the part that a getitem takes from a split."""
    split = cast(fx.Node, node.args[0])
    axis = get_argument(split, "dim") % node.meta["val"].dim()
    ends = list(accumulate(part.shape[axis] for part in split.meta["val"]))
    place = cast(int, node.args[1])
    return ends[place] - split.meta["val"][place].shape[axis], ends[place], axis


def _whole_of_part(node: fx.Node, source: fx.Node, result: Vector) -> Vector | None:
    """The vector over the value that is split: the other parts have no entry."""
    start, stop, axis = _part(node)
    twins = [u for u in cast(fx.Node, node.args[0]).users if u.args[1] == node.args[1]]
    if result.axis not in (None, axis) or len(twins) > 1:
        return None
    index = torch.full((source.meta["val"].shape[axis],), -1)
    index[start:stop] = result.index
    return Vector(axis, index)


def _joined(node: fx.Node, operand: fx.Node, given: Vector) -> Vector | None:
    """The vector over a concatenation: the other parts have no entry."""
    parts = cast(Any, node.args[0])
    axis = get_argument(node, "dim") % node.meta["val"].dim()
    sizes = [part.meta["val"].shape[axis] for part in parts]
    if given.axis not in (None, axis) or list(parts).count(operand) != 1:
        return None
    place = list(parts).index(operand)
    start = sum(sizes[:place])
    index = torch.full((sum(sizes),), -1)
    index[start : start + sizes[place]] = given.index
    return Vector(axis, index)
