"""Where the constant units of a value lie after an operator that only moves, cuts or repeats numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from fxprune_passes.rewrite.constants.constant import Constant
from fxprune_passes.rewrite.moves.moving_operators import is_split

Tensor = torch.Tensor

# A view that merges longer axes is not followed: each of its positions would be written out.
_LARGEST = 1 << 22


def moved_constant(node: fx.Node, first: Constant, sizes: Sizes) -> Constant | None:
    """The constant units of the result of a node that moves the numbers of its first argument; None for any other.

    Args:
        node: the call.
        first: the constant units of its first argument; of the value that was split, for a part of it.
        sizes: a number for each symbolic length.
    """
    if node.target is getitem:
        return _part(node, first)
    move = _MOVES.get(operator(node))
    return None if move is None else move(node, first, sizes)


def split_source(node: fx.Node) -> fx.Node | None:
    """The value of which a node is a part; None where it is none."""
    if node.target is not getitem:
        return None
    split = cast(fx.Node, node.args[0])
    return cast(fx.Node, split.args[0]) if is_split(split) else None


def _part(node: fx.Node, first: Constant) -> Constant | None:
    split, place = cast(fx.Node, node.args[0]), cast(int, node.args[1])
    rank = node.meta["val"].dim()
    axis = get_argument(split, "dim") % rank
    if axis != first.axis:
        return first
    lengths = [part.shape[axis] for part in split.meta["val"]]
    if not all(isinstance(n, int) for n in lengths):
        return None
    ends = list(accumulate(lengths, initial=0))
    return Constant(axis, first.values[ends[place] : ends[place + 1]])


def _view(node: fx.Node, first: Constant, sizes: Sizes) -> Constant | None:
    """Axes are merged and split: the axis of the result along which most constant units lie."""
    old = sizes.shape(cast(fx.Node, node.args[0]).meta["val"])
    new = sizes.shape(node.meta["val"])
    for before, after in runs(old, new):
        if not before.start <= first.axis < before.stop:
            continue
        if prod(old[before]) > _LARGEST:
            return None
        own = [n if before.start + i == first.axis else 1 for i, n in enumerate(old[before])]
        table = first.values.view(own).expand(old[before]).reshape(new[after])
        return _best(table, after.start)
    return None


def _best(table: Tensor, offset: int) -> Constant | None:
    found: list[Constant] = []
    for axis, length in enumerate(table.shape):
        rows = table.movedim(axis, 0).reshape(length, -1)
        alike = (rows == rows[:, :1]).all(1)
        found.append(Constant(offset + axis, torch.where(alike, rows[:, 0], float("nan"))))
    return max(found, key=lambda c: int((~c.values.isnan()).sum()), default=None)


def _permute(node: fx.Node, first: Constant, _: Sizes) -> Constant:
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if operator(node) == "permute":
        order = [d % rank for d in get_argument(node, "dims")]
    else:
        a, b = (cast(int, d) % rank for d in node.args[1:3] or (-2, -1))
        order[a], order[b] = b, a
    return Constant(order.index(first.axis), first.values)


def _slice(node: fx.Node, first: Constant, _: Sizes) -> Constant | None:
    axis = get_argument(node, "dim") % node.meta["val"].dim()
    if axis != first.axis:
        return first
    bounds = [get_argument(node, n) for n in ("start", "end", "step")]
    if not all(n is None or isinstance(n, int) for n in bounds):
        return None
    return Constant(axis, first.values[slice(*bounds)])


def _expand(node: fx.Node, first: Constant, _: Sizes) -> Constant | None:
    source, result = cast(fx.Node, node.args[0]).meta["val"], node.meta["val"]
    axis = first.axis + result.dim() - source.dim()
    length = result.shape[axis]
    if not isinstance(length, int):
        return None
    return Constant(axis, first.values.expand(length))


def _flip(node: fx.Node, first: Constant, _: Sizes) -> Constant:
    turned = {d % node.meta["val"].dim() for d in get_argument(node, "dims")}
    return Constant(first.axis, first.values.flip(0)) if first.axis in turned else first


_Move = Callable[[fx.Node, Constant, Sizes], Constant | None]
_MOVES: dict[str, _Move] = {
    **dict.fromkeys("_unsafe_view flatten reshape squeeze unflatten unsqueeze view".split(), _view),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "mT"), _permute),
    "slice": _slice,
    "expand": _expand,
    "flip": _flip,
}


def joined_constant(node: fx.Node, parts: Sequence[tuple[fx.Node, Constant | None]]) -> Any:
    """The constant units of a concatenation, from those of its parts."""
    axis = get_argument(node, "dim") % node.meta["val"].dim()
    if any(part.meta["val"].dim() != node.meta["val"].dim() for part, _ in parts):
        return None  # torch skips an empty part of one axis
    if all(found is not None and found.axis != axis for _, found in parts):
        return _shared(cast("list[Constant]", [found for _, found in parts]))
    joined: list[Tensor] = []
    for part, found in parts:
        length = part.meta["val"].shape[axis]
        if not isinstance(length, int):
            return None
        unknown = torch.full((length,), float("nan"), dtype=torch.float64)
        joined.append(unknown if found is None or found.axis != axis else found.values.cpu())
    return Constant(axis, torch.cat(joined))


def _shared(parts: Sequence[Constant]) -> Constant | None:
    """What is the same number in every part."""
    first, *rest = parts
    if any(p.axis != first.axis for p in rest):
        return None
    values = first.values
    for part in rest:
        values = torch.where(values == part.values.to(values), values, float("nan"))
    return Constant(first.axis, values)
