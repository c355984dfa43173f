"""Where a vector that lies along one axis of a value comes to lie when the value is moved about."""

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

Tensor = torch.Tensor

_SAME = frozenset("alias clone contiguous detach dropout feature_dropout".split())
_VIEWS = frozenset("_unsafe_view flatten reshape squeeze unflatten unsqueeze view".split())
_MOVES = frozenset(("permute", "transpose", "swapaxes"))
_CUTS = frozenset(("slice", "narrow"))
_SPLITS = frozenset(("split", "split_with_sizes", "chunk"))
_POOLS = {
    f"{kind}_pool{d}d": d
    for kind in ("avg", "max", "adaptive_avg", "adaptive_max")
    for d in (1, 2, 3)
}
_MOVING = _SAME | _VIEWS | _MOVES | _CUTS | _POOLS.keys() | {"mean"}


@dataclass(frozen=True)
class Vector:
    """How a vector lies over a value.

    Attributes:
        axis: of the value; None: one number stands for all of the value.
        index: `[length of the axis]`, which entry each position has; -1: none.
    """

    axis: int | None
    index: Tensor

    @classmethod
    def along(cls, axis: int, length: int) -> Vector:
        """A vector with an entry for each position of an axis."""
        return cls(axis, torch.arange(length))

    @classmethod
    def of_one(cls) -> Vector:
        """One number for all of a value."""
        return cls(None, torch.zeros(1, dtype=torch.int64))

    def over(self, axis: int, length: int) -> Tensor | None:
        """The entry of each position of an axis; None where the vector lies along another one."""
        if self.axis is None:
            return self.index.expand(length)
        return self.index if self.axis == axis and len(self.index) == length else None


def pick(values: Tensor, index: Tensor, nothing: float) -> Tensor:
    """The entries of a vector by their positions, and a number where there is none; one number is for all."""
    found = values.reshape(-1)[index.clamp(0, values.numel() - 1).to(values.device)]
    return torch.where(index.to(values.device) < 0, nothing, found)


def moved_value(node: fx.Node) -> fx.Node | None:
    """The value that a node moves, splits, pools or joins with others; None where it does something else."""
    if node.target is getitem:
        split = cast(fx.Node, node.args[0])
        return cast(fx.Node, split.args[0]) if is_split(split) else None
    name = operator(node)
    if name not in _MOVING or not isinstance(node.args[0], fx.Node):
        return None
    source, result = node.args[0], node.meta["val"]
    alike = isinstance(result, torch.Tensor) and result.dtype == source.meta["val"].dtype
    return source if alike else None


def is_split(node: fx.Node) -> bool:
    """Whether a node gives the parts of a value along an axis."""
    return operator(node) in _SPLITS


def is_view(node: fx.Node) -> bool:
    """Whether a node gives the numbers of a value another shape."""
    return operator(node) in _VIEWS


def is_average(node: fx.Node) -> bool:
    """Whether a node averages over positions."""
    return "avg_pool" in operator(node) or operator(node) == "mean"


def shifts_alike(node: fx.Node) -> bool:
    """Whether a vector added to what a node moves is one added to its result."""
    name = operator(node)
    if "dropout" in name:
        return not get_argument(node, "train") or get_argument(node, "p") == 0
    return not (name.startswith("avg") and _counts_others(node)) and "max" not in name


def _counts_others(pool: fx.Node) -> bool:
    """Whether the average of ones is not 1 everywhere."""
    padding = get_argument(pool, "padding")
    padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    divisor = None if operator(pool) == "avg_pool1d" else get_argument(pool, "divisor_override")
    return padded or divisor is not None


def before(node: fx.Node, result: Vector) -> Vector | None:
    """The vector over what a node moves that becomes the given one over its result; None where there is none."""
    source = moved_value(node)
    if source is None:
        return None
    if node.target is getitem:
        return _whole_of_part(node, source, result)
    if result.axis is None:
        return result
    if operator(node) in _VIEWS:
        return _viewed(node, source, result)
    axes = _axes(node, source)
    axis = axes[result.axis]
    return None if axis is None else replace(result, axis=axis)


def behind(node: fx.Node, operand: fx.Node, given: Vector) -> Vector | None:
    """The vector over a node's result that one over its operand becomes; None where there is none."""
    if operator(node) in ("cat", "concat"):
        return _joined(node, operand, given)
    source = moved_value(node)
    if source is not operand or given.axis is None:
        return None if source is not operand else given
    if node.target is getitem:
        start, stop, axis = _part(node)
        return replace(given, index=given.index[start:stop]) if axis == given.axis else given
    if operator(node) in _VIEWS:
        return _viewed(source, node, given)
    axes = _axes(node, source)
    return replace(given, axis=axes.index(given.axis)) if given.axis in axes else None


def _axes(node: fx.Node, source: fx.Node) -> list[int | None]:
    """By axis of a result, the axis of the source that it is; None where positions were averaged or left out."""
    rank, name = source.meta["val"].dim(), operator(node)
    order: list[int | None] = list(range(rank))
    if name == "permute":
        return [d % rank for d in get_argument(node, "dims")]
    if name in _MOVES:
        a, b = (cast(int, d) % rank for d in node.args[1:3])
        order[a], order[b] = b, a
    if name in _CUTS:
        order[get_argument(node, "dim") % rank] = None
    if name in _POOLS:
        order[rank - _POOLS[name] :] = [None] * _POOLS[name]
    if name == "mean":
        dims = {d % rank for d in get_argument(node, "dim") or range(rank)}
        kept = get_argument(node, "keepdim")
        order = [None if i in dims else i for i in range(rank) if kept or i not in dims]
    return order


def _viewed(source: fx.Node, result: fx.Node, given: Vector) -> Vector | None:
    """A vector over one shape, over another shape of the same numbers."""
    assert given.axis is not None
    sizes = Sizes.of_primes()
    old, new = (sizes.shape(n.meta["val"]) for n in (source, result))
    tail = old[given.axis :]
    if new[len(new) - len(tail) :] == tail:
        return replace(given, axis=len(new) - len(tail))
    if prod(old) != prod(
        new
    ):  # a symbolic length was divided, and that of the example divides otherwise
        return None
    for a, b in runs(old, new):
        if a.start <= given.axis < a.stop:
            ones = [1] * (a.stop - a.start)
            ones[given.axis - a.start] = -1
            grid = given.index.view(ones).expand(old[a]).reshape(new[b] or [1])
            return _along_one(grid, b.start, result.meta["val"])
    return None


def _along_one(grid: Tensor, first: int, value: Tensor) -> Vector | None:
    """A grid over some axes of a value as a vector along one of them; None where it varies along more."""
    varies = [i for i in range(grid.dim()) if not bool((grid == grid.narrow(i, 0, 1)).all())]
    if len(varies) > 1 or first + grid.dim() > value.dim():
        return None
    axis = varies[0] if varies else 0
    if not isinstance(value.shape[first + axis], int):
        return None
    return Vector(first + axis, grid.movedim(axis, 0).flatten(1)[:, 0] if grid.dim() > 1 else grid)


def _part(node: fx.Node) -> tuple[int, int, int]:
    """Where the part of a split begins and ends, and along which axis."""
    split = cast(fx.Node, node.args[0])
    axis = get_argument(split, "dim") % node.meta["val"].dim()
    ends = list(accumulate(part.shape[axis] for part in split.meta["val"]))
    place = cast(int, node.args[1])
    return ends[place] - split.meta["val"][place].shape[axis], ends[place], axis


def _whole_of_part(node: fx.Node, source: fx.Node, result: Vector) -> Vector | None:
    """Over the whole of what is split, nothing for the other parts."""
    start, stop, axis = _part(node)
    twins = [u for u in cast(fx.Node, node.args[0]).users if u.args[1] == node.args[1]]
    if result.axis not in (None, axis) or len(twins) > 1:
        return None
    index = torch.full((source.meta["val"].shape[axis],), -1)
    index[start:stop] = result.index
    return Vector(axis, index)


def _joined(node: fx.Node, operand: fx.Node, given: Vector) -> Vector | None:
    """Over a concatenation, nothing for the other parts."""
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
