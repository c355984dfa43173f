"""Equal parts of a chunk, which stay equal: a forward that chunks a smaller tensor gets equal parts again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Group
from fxprune.graph.program import Program
from fxprune.plan.limits import Limits

_SPLIT = "aten.split_with_sizes.default"  # what capture makes of a chunk


def equal_parts(program: Program, axes: Axes, groups: Sequence[Group]) -> Limits:
    """Ties the groups that are the parts of one chunk, where each part is one group, and all are of one length."""
    owner = np.full(axes.n_units, -1)
    for i, group in enumerate(groups):
        owner[group.units] = i
    ties: list[set[int]] = []
    for node in program.nodes:
        if str(node.target) == _SPLIT and len(set(node.args[1])) == 1:  # type: ignore[arg-type]
            parts = {_part(axes.final(label), owner, groups) for label in _chunked(node, axes)}
            if None not in parts and len({len(groups[i]) for i in parts if i is not None}) == 1:
                ties.append({i for i in parts if i is not None})
    return Limits(
        ties=tuple(tuple(groups[i].name for i in sorted(t)) for t in _merged(ties) if len(t) > 1)
    )


def _chunked(node: fx.Node, axes: Axes) -> list[Label]:
    """The label, in each part, of the axis that is chunked."""
    parts = axes.nodes.get(node)
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    return [p[dim] for p in parts] if isinstance(parts, list) and isinstance(dim, int) else []


def _part(label: Label, owner: IntArray, groups: Sequence[Group]) -> int | None:
    """The group whose units are the positions of an axis, each once; None where there is no such one."""
    if len(label.columns) != 1:
        return None
    found = int(owner[label.columns[0][0]]) if len(label) else -1
    same = found >= 0 and np.array_equal(np.sort(label.columns[0]), groups[found].units)
    return found if same else None


def _merged(ties: list[set[int]]) -> list[set[int]]:
    """Ties that share a group, as one."""
    merged: list[set[int]] = []
    for tie in ties:
        others = [m for m in merged if not m & tie]
        merged = [*others, tie.union(*(m for m in merged if m & tie))]
    return merged
