"""Recognises a concatenation that joins all parts of a split again."""

from __future__ import annotations

from operator import getitem
from typing import cast

from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator

_SPLITS = frozenset(("split", "split_with_sizes", "chunk", "tensor_split"))


def split_value(cat: fx.Node) -> fx.Node | None:
    """The value of which a concatenation joins all parts in their order; None where it joins anything else."""
    parts = cast("list[fx.Node]", get_argument(cat, "tensors"))
    if any(part.target is not getitem for part in parts):
        return None
    splits = {cast(fx.Node, part.args[0]) for part in parts}
    split = splits.pop()
    if splits or operator(split) not in _SPLITS:
        return None
    count, rank = len(split.meta["val"]), cat.meta["val"].dim()
    same_axis = get_argument(cat, "dim") % rank == get_argument(split, "dim") % rank
    whole = [part.args[1] for part in parts] == list(range(count))
    return cast(fx.Node, split.args[0]) if whole and same_axis else None
