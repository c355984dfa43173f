"""How many units each group has to lose for tensors to have wanted sizes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.analysis.group import Group

_MOST = 8  # solutions
Counts = tuple[int, ...]
"""How many units each group of a component loses."""


@dataclass(frozen=True, eq=False)
class WantedAxis:
    """An axis of a tensor and the length that it should have.

    Attributes:
        tensor: its name.
        axis: its number.
        wanted: the length.
        columns: for each column of its label that has units, the group of each position (-1 where it has none), and the
            place of its unit in that group, `[2, positions]`.
    """

    tensor: str
    axis: int
    wanted: int
    columns: tuple[IntArray, ...]

    @property
    def key(self) -> tuple[int, bytes]:
        """The same for axes that ask for the same."""
        return self.wanted, b"".join(c.tobytes() for c in self.columns)

    def length(self, counts: IntArray) -> int:
        """The length where every group has lost its first units, so many."""
        kept: BoolArray = np.ones(self.columns[0].shape[1], bool)
        for group, place in self.columns:
            kept &= (group < 0) | (place >= counts[group])
        return int(kept.sum())


@dataclass(frozen=True, eq=False)
class Component:
    """Groups that cut the same axes, directly or through others.

    Attributes:
        groups: the groups, the smallest first.
        axes: the axes that they cut.
    """

    groups: tuple[Group, ...]
    axes: tuple[WantedAxis, ...]

    @cached_property
    def key(self) -> tuple[object, ...]:
        """The same for components that have the same solutions, as those of the layers of a network."""
        return tuple(len(g) for g in self.groups), tuple(sorted(a.key for a in self._distinct))

    @cached_property
    def _distinct(self) -> list[WantedAxis]:
        return list({a.key: a for a in self.axes}.values())

    def solutions(self) -> list[Counts]:
        """How many units the groups may lose, so that every axis has the wanted length; at most a few ways."""
        found: list[Counts] = []
        for counts in self._search(np.zeros(len(self.groups), np.int64), 0):
            found.append(tuple(int(n) for n in counts))
            if len(found) == _MOST:
                break
        return found

    def _search(self, counts: IntArray, at: int) -> Iterator[IntArray]:
        """Goes through the groups; lengths fall with every unit, which rules out most numbers."""
        if at == len(self.groups):
            if all(a.length(counts) == a.wanted for a in self._distinct):
                yield counts.copy()
            return
        for lost in self._possible(counts, at):
            counts[at] = lost
            yield from self._search(counts, at + 1)
        counts[at] = 0

    def _possible(self, counts: IntArray, at: int) -> range:
        """How many units a group may lose: few enough for the longest wanted axis, enough for the shortest."""
        size = len(self.groups[at])
        rest = np.array([len(g) - 1 for g in self.groups], np.int64)
        rest[: at + 1] = counts[: at + 1]

        def too_many(lost: int) -> bool:
            trial = counts.copy()
            trial[at] = lost
            return any(a.length(trial) < a.wanted for a in self._distinct)

        def enough(lost: int) -> bool:
            trial = rest.copy()
            trial[at] = lost
            return all(a.length(trial) <= a.wanted for a in self._distinct)

        lost = range(size)
        return range(*(bisect_left(lost, True, key=holds) for holds in (enough, too_many)))

    def unreachable(self) -> tuple[WantedAxis, list[int]]:
        """An axis that cannot have its length, and lengths that it can have; the first axis where each one can."""
        for axis in self._distinct:
            can = self._lengths(axis)
            if axis.wanted not in can:
                return axis, can
        return self._distinct[0], self._lengths(self._distinct[0])

    def _lengths(self, axis: WantedAxis) -> list[int]:
        """The lengths that an axis can have."""
        mine = sorted({int(g) for group, _ in axis.columns for g in np.unique(group) if g >= 0})
        found = {axis.length(np.zeros(len(self.groups), np.int64))}
        grids = np.meshgrid(*(np.arange(min(len(self.groups[g]), 256)) for g in mine))
        for row in np.stack([g.ravel() for g in grids], axis=1)[:4096]:
            counts = np.zeros(len(self.groups), np.int64)
            counts[mine] = row
            found.add(axis.length(counts))
        return sorted(found)


def components(
    axes: Axes, groups: Sequence[Group], wanted: Mapping[str, tuple[int, ...]]
) -> list[Component]:
    """The components of the groups of a program, with the wanted length of every axis that they cut."""
    owner = np.full(axes.n_units, -1)
    place = np.zeros(axes.n_units, np.int64)
    for i, group in enumerate(groups):
        owner[group.units], place[group.units] = i, np.arange(len(group))
    joined = nx.Graph()
    joined.add_nodes_from(range(len(groups)))
    cuts: list[tuple[str, int, Label, list[int]]] = []
    for name, labels in axes.params.items():
        for i, label in enumerate(labels):
            mine = sorted({int(g) for c in label.columns for g in np.unique(owner[c]) if g >= 0})
            if mine:
                cuts.append((name, i, label, mine))
                nx.add_path(joined, mine)
    found = []
    for several in nx.connected_components(joined):
        ordered = sorted(several, key=lambda i: (len(groups[i]), i))
        local = np.full(len(groups) + 1, -1)
        local[ordered] = np.arange(len(ordered))
        found.append(
            Component(
                tuple(groups[i] for i in ordered),
                tuple(
                    WantedAxis(
                        name,
                        i,
                        wanted[name][i],
                        tuple(np.stack([local[owner[c]], place[c]]) for c in label.columns),
                    )
                    for name, i, label, mine in cuts
                    if mine[0] in several
                ),
            )
        )
    return found
