"""Operators that only move, split or pool numbers: views, permutations, slices, splits, pools, means."""

from __future__ import annotations

from operator import getitem
from typing import cast

import torch
from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator

_SAME = frozenset("alias clone contiguous detach dropout feature_dropout".split())
VIEWS = frozenset("_unsafe_view flatten reshape squeeze unflatten unsqueeze view".split())
PERMUTATIONS = frozenset(("permute", "transpose", "swapaxes"))
CUTS = frozenset(("slice", "narrow"))
_SPLITS = frozenset(("split", "split_with_sizes", "chunk"))
POOLS = {
    f"{kind}_pool{d}d": d
    for kind in ("avg", "max", "adaptive_avg", "adaptive_max")
    for d in (1, 2, 3)
}
_MOVING = _SAME | VIEWS | PERMUTATIONS | CUTS | POOLS.keys() | {"mean"}


def moved_value(node: fx.Node) -> fx.Node | None:
    """The value whose numbers a node moves, splits off or pools; None where it computes something else."""
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
    """Whether a node splits a value into parts along an axis."""
    return operator(node) in _SPLITS


def is_view(node: fx.Node) -> bool:
    """Whether a node returns the numbers of a value in another shape."""
    return operator(node) in VIEWS


def is_average(node: fx.Node) -> bool:
    """Whether a node averages over positions."""
    return "avg_pool" in operator(node) or operator(node) == "mean"


def shifts_alike(node: fx.Node) -> bool:
    """Whether adding a vector before a node has the same effect as adding it, moved, after the node."""
    name = operator(node)
    if "dropout" in name:
        return not get_argument(node, "train") or get_argument(node, "p") == 0
    return not (name.startswith("avg") and _counts_others(node)) and "max" not in name


def _counts_others(pool: fx.Node) -> bool:
    """Whether an average pool divides by another number than that of the elements in its window."""
    padding = get_argument(pool, "padding")
    padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    divisor = None if operator(pool) == "avg_pool1d" else get_argument(pool, "divisor_override")
    return padded or divisor is not None
