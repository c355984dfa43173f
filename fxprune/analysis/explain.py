"""Explains why axes are pruned together, and why an axis stays, as paths of operators through the couplings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np
from torch import fx

from fxprune.algebra.label import IntArray, Label
from fxprune.algebra.units import Coupling
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Group, find_groups, first_producer
from fxprune.errors import PlanError
from fxprune.graph.program import describe, source_line


@dataclass(frozen=True)
class Reason:
    """An axis that is pruned together with the requested one, and the operators that couple them.

    Attributes:
        param: the name of the tensor.
        axis: the number of the axis.
        role: producer, consumer or elementwise; see `Member`.
        path: the operators between the two axes, those nearest to the requested axis first.
    """

    param: str
    axis: int
    role: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        way = " -> ".join(self.path) if self.path else "this is the requested axis"
        return f"  {self.param}, axis {self.axis} ({self.role}): {way}"


@dataclass(frozen=True)
class Explanation:
    """What is pruned together with an axis and why, or why the axis stays; prints as text.

    Attributes:
        param: the name of the tensor.
        axis: the number of the axis.
        groups: the names of the groups that cut the axis.
        members: for the first unit of each group, every axis that it cuts, with a path of operators.
        frozen: which positions stay and why, with a path of operators; "" if all positions can be removed.
    """

    param: str
    axis: int
    groups: tuple[str, ...]
    members: tuple[Reason, ...]
    frozen: str

    def __str__(self) -> str:
        lines = [f"{self.param}, axis {self.axis}"]
        if self.groups:
            lines.append(
                f"units of {', '.join(self.groups)} can be removed; each of them removes positions of these axes:"
            )
            lines += [str(m) for m in self.members]
        if self.frozen:
            lines.append(self.frozen)
        return "\n".join(lines)


def explain_axis(axes: Axes, param: str, axis: int) -> Explanation:
    """Explains one axis of a parameter or buffer.

    Raises:
        PlanError: the program has no such axis.
    """
    first, label = _found(axes, param, axis)
    cut = np.unique(np.concatenate(label.columns)) if label.columns else np.zeros(0, np.int64)
    groups = [g for g in find_groups(axes) if np.isin(g.units, cut).any()]
    members = tuple(r for g in groups for r in _members(axes, g, cut, first, axis))
    return Explanation(
        param, axis, tuple(g.name for g in groups), members, _frozen(axes, label, first, axis)
    )


def explain_frozen(axes: Axes, param: str, axis: int) -> str:
    """Why positions of an axis stay; "" if all of them can be removed.

    Raises:
        PlanError: the program has no such axis.
    """
    first, label = _found(axes, param, axis)
    return _frozen(axes, label, first, axis)


def _found(axes: Axes, param: str, axis: int) -> tuple[str, Label]:
    """The first name of a tensor, and the label of an axis of it."""
    first = {name: key for key, names in axes.names.items() for name in names}.get(param)
    if first is None or first not in axes.params or not 0 <= axis < len(axes.params[first]):
        known = (
            "the graph does not use this tensor"
            if first is not None and first not in axes.params
            else ""
        )
        raise PlanError(
            f"the program has no tensor {param} with an axis {axis}",
            why=known,
            do="take a name and an axis from fp.groups(program) or `fxprune groups`",
        )
    return first, axes.params[first][axis]


def explain_groups(axes: Axes) -> dict[str, tuple[Reason, ...]]:
    """For the first unit of each group, by the group's name, every axis that it cuts, seen from the first producer."""
    found = {}
    for group in find_groups(axes):
        found[group.name] = tuple(_members(axes, group, group.units, *first_producer(group._cut)))
    return found


def coupling_graph(axes: Axes, unit: int) -> nx.Graph:
    """Returns a graph of the raw units that one unit removes, with an edge for every node that couples two of them."""
    inside = axes._expansion.removed_by(unit)
    graph = nx.Graph()
    for coupling in axes.couplings:
        if coupling.b is not None:
            for a, b in _pairs(coupling.a, coupling.b):
                hit = inside[a] & inside[b]
                graph.add_edges_from(
                    zip(a[hit].tolist(), b[hit].tolist(), strict=True), node=coupling.node
                )
    return graph


def _pairs(a: Label, b: Label) -> Iterator[tuple[IntArray, IntArray]]:
    for x in a.columns:
        for y in b.columns:
            yield x, y


def _members(axes: Axes, group: Group, cut: IntArray, param: str, axis: int) -> Iterator[Reason]:
    unit = int(group.units[np.isin(group.units, cut)][0])
    graph = coupling_graph(axes, unit)
    raw = _raw_labels(axes)
    starts = _raw_units(axes, raw[param][axis], unit)
    reached = {s: [s] for s in starts}
    if any(s in graph for s in starts):
        reached.update(
            nx.multi_source_dijkstra_path(
                graph, {s for s in starts if s in graph}, weight=lambda *_: 1
            )
        )
    for member in group.members:
        ends = _raw_units(axes, raw[member.param][member.axis], unit)
        paths = [reached[e] for e in ends if e in reached]
        way = min(paths, key=len) if paths else []
        steps = [graph.edges[a, b]["node"] for a, b in pairwise(way)]
        yield Reason(member.param, member.axis, member.role, tuple(_step(n) for n in steps))


def _step(node: fx.Node) -> str:
    line = source_line(node)
    return f"{node.name} ({node.target}{' at ' + line.rsplit('/', 1)[-1] if line else ''})"


def _raw_labels(axes: Axes) -> dict[str, tuple[Label, ...]]:
    first = {name: key for key, names in axes.names.items() for name in names}
    return {
        first[str(n.target)]: labels
        for n, labels in axes.nodes.items()
        if n.op == "get_attr" and labels is not None
    }


def _raw_units(axes: Axes, label: Label, unit: int) -> list[int]:
    found: list[int] = []
    for column in label.columns:
        found += column[axes._expansion.removed_by(unit, column)].tolist()
    return found


def _frozen(axes: Axes, final: Label, param: str, axis: int) -> str:
    """Returns why positions of an axis stay; "" if all of them can be removed."""
    stays = np.ones(len(final), bool)
    for column in final.columns:
        stays &= column == 0
    if not stays.any():
        return ""
    raw = _raw_labels(axes)[param][axis]
    start = int(np.flatnonzero(stays)[0])
    share = (
        "every position stays"
        if stays.all()
        else f"{int(stays.sum())} of {len(stays)} positions stay, the first is {start}"
    )
    return f"{share}:\n  {_frozen_reason(axes, {int(c[start]) for c in raw.columns})}"


def _frozen_reason(axes: Axes, frontier: set[int]) -> str:
    """Follows the couplings from unit to unit until one that an operator has frozen."""
    seen = set(frontier)
    way: dict[int, tuple[str, ...]] = dict.fromkeys(frontier, ())
    while frontier:
        units = np.fromiter(frontier, np.int64)
        for coupling in axes.couplings:
            if coupling.b is None or not coupling.b.columns or not coupling.a.columns:
                hit = _first_hit(coupling, units)
                if hit is not None:
                    steps = [*way[hit], f"{describe(coupling.node)}: {coupling.why}"]
                    return "\n  -> ".join(steps)
        frontier = _next(axes, units, seen, way)
    return (
        "it is viewed in ways that contradict each other: no whole rows or columns can be removed"
    )


def _first_hit(coupling: Coupling, units: IntArray) -> int | None:
    for label in (coupling.a, coupling.b):
        for column in label.columns if label is not None else ():
            hit = column[np.isin(column, units)]
            if hit.size:
                return int(hit[0])
    return None


def _next(axes: Axes, units: IntArray, seen: set[int], way: dict[int, tuple[str, ...]]) -> set[int]:
    found: set[int] = set()
    for coupling in axes.couplings:
        if coupling.b is None:
            continue
        for a, b in _pairs(coupling.a, coupling.b):
            for x, y in ((a, b), (b, a)):
                hit = np.isin(x, units)
                for source, target in zip(x[hit].tolist(), y[hit].tolist(), strict=True):
                    if target and target not in seen:
                        seen.add(target)
                        found.add(target)
                        way[target] = (*way[source], _step(coupling.node))
    return found
