"""Groups: units that cut the same axes in the same way, with every axis that is pruned with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from tabulate import tabulate

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.graph.gc_pause import without_collection
from fxprune.markup import first_rows

_HEADER = ("group", "units", "removal", "axes", "axes that lose positions")
Role = Literal["producer", "consumer", "elementwise"]


@dataclass(frozen=True, eq=False)
class Member:
    """An axis of a parameter or buffer that a group cuts.

    Attributes:
        param: the name of the tensor.
        axis: the number of the axis.
        role: `producer` if the axis is an output of a product, `consumer` if a product sums over it,
            `elementwise` otherwise.
        positions: the positions of the axis that belong to the group, ascending.
        units: for each of `positions`, the unit of the group that removes it (the first, if there are several).
    """

    param: str
    axis: int
    role: Role
    positions: IntArray
    units: IntArray

    def of(self, unit: int) -> IntArray:
        """Returns the positions that one unit removes."""
        found: IntArray = self.positions[self.units == unit]
        return found


@dataclass(frozen=True, eq=False)
class Group:
    """Units that cut the same axes of parameters and buffers; each unit can be removed on its own.

    Attributes:
        name: the first axis with the role producer, as `parameter:axis`, with a number if several groups cut it.
        units: the units, ascending.
        exact: whether removing units leaves the statistics of every norm unchanged.
    """

    name: str
    units: IntArray
    exact: bool
    _axes: Axes
    _cut: tuple[tuple[str, int, Role], ...]

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every axis that the group cuts, in the order of the graph."""
        inside = np.zeros(self._axes.n_units, bool)
        inside[self.units] = True
        return tuple(self._member(inside, *cut) for cut in self._cut)

    def _member(self, inside: np.ndarray, param: str, axis: int, role: Role) -> Member:
        label = self._axes.params[param][axis]
        owner = np.zeros(len(label), np.int64)
        for column in reversed(label.columns):
            owner = np.where(inside[column], column, owner)
        positions = np.flatnonzero(owner)
        return Member(param, axis, role, positions, owner[positions])


class Groups(list[Group]):
    """The groups of a program; prints as a table."""

    def __str__(self) -> str:
        return tabulate(list(map(_row, self)), _HEADER, tablefmt="simple")

    def _repr_html_(self) -> str:
        """A short table, for notebooks."""
        return first_rows(_HEADER, list(map(_row, self)), "groups")


def _row(group: Group) -> tuple[str, int, str, int, str]:
    removal = "exact" if group.exact else "changes norm statistics"
    return group.name, len(group), removal, len(group._cut), _preview(group)


def _preview(group: Group, shown: int = 3) -> str:
    names = [f"{p}:{a}" for p, a, _ in group._cut]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@without_collection()
def find_groups(axes: Axes) -> Groups:
    """Returns the groups of a solved program in the order of the graph, in time linear in the number of positions."""
    roles = _roles(axes)
    keys = [
        (name, i) for name, labels in axes.params.items() for i, x in enumerate(labels) if x.columns
    ]
    signature = _signatures(axes, keys)
    signature[0] = 0
    _, index = np.unique(signature, return_inverse=True)
    cut: dict[int, dict[tuple[str, int, Role], None]] = {}
    for name, i in keys:
        for column in axes.params[name][i].columns:
            for g in np.flatnonzero(np.bincount(index[column])).tolist():
                if g != index[0]:
                    cut.setdefault(g, {})[name, i, roles[name, i]] = None
    order = np.argsort(index, kind="stable")
    bounds = np.searchsorted(index[order], np.arange(index.max() + 2))
    names: Counter[str] = Counter()
    found = Groups()
    for g, members in cut.items():
        name = _name(tuple(members), names)
        units = np.sort(order[bounds[g] : bounds[g + 1]])
        found.append(Group(name, units, not axes.renormalised[units].any(), axes, tuple(members)))
    return found


def first_producer(cut: Sequence[tuple[str, int, Role]]) -> tuple[str, int]:
    """The tensor and the axis that name a group."""
    return next((c for c in cut if c[2] == "producer"), cut[0])[:2]


def _name(cut: tuple[tuple[str, int, Role], ...], names: Counter[str]) -> str:
    """Returns the name of a group; a number tells heads and head channels of one axis apart."""
    param, axis = first_producer(cut)
    name = f"{param}:{axis}"
    names[name] += 1
    return name if names[name] == 1 else f"{name}#{names[name]}"


def _signatures(axes: Axes, keys: list[tuple[str, int]]) -> np.ndarray:
    """Returns for each unit a number that stands for the axes it cuts and its factor in each (head or head channel)."""
    columns = [column for name, i in keys for column in axes.params[name][i].columns]
    weights = np.random.default_rng(0).integers(1, 2**63, len(columns), dtype=np.uint64)
    signature = np.zeros(axes.n_units, np.uint64)
    for column, weight in zip(columns, weights, strict=True):
        signature[distinct(column, axes.n_units)] += weight
    return signature


def distinct(units: IntArray, n_units: int) -> IntArray:
    """Returns each unit once, ascending, without the frozen one; `np.unique` takes many times as long."""
    if len(units) * 8 >= n_units:
        found: IntArray = np.flatnonzero(np.bincount(units, minlength=n_units))
        return found[int(found.size and found[0] == 0) :]
    ordered = np.sort(units)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    once: IntArray = ordered[first & (ordered != 0)]
    return once


def _roles(axes: Axes) -> dict[tuple[str, int], Role]:
    """Returns the role of each axis of a parameter or buffer in the operators that use it."""
    first = {name: key for key, names in axes.names.items() for name in names}
    roles: dict[tuple[str, int], Role] = {
        (name, i): "elementwise" for name, labels in axes.params.items() for i in range(len(labels))
    }
    for node, labels in axes.nodes.items():
        if node.op != "get_attr" or labels is None:
            continue
        for user in node.users:
            silenced = {id(x) for x in axes.marks[user].silenced} if user in axes.marks else set()
            for i, label in enumerate(labels):
                if id(label) in silenced:
                    roles[first[node.target], i] = "consumer"
                elif silenced and roles[first[node.target], i] == "elementwise":
                    roles[first[node.target], i] = "producer"
    return roles
