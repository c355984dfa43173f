"""A vectorised union-find over units, with aliases."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fxprune.algebra.label import IntArray, Label


class UnitForest:
    """A union-find structure over units 0 to n - 1, with aliases.

    Units in one component are removed together; the smallest number in a component represents it.
    Unit 0 is frozen, so a union with unit 0 freezes the other unit. An alias is a unit that is
    removed whenever any unit of a given tuple is removed.
    """

    def __init__(self) -> None:
        self._parent: IntArray = np.zeros(1024, np.int64)
        self.size = 1
        self._aliases: list[tuple[IntArray, IntArray]] = []

    def fresh(self, length: int) -> IntArray:
        """Creates `length` new units and returns their numbers, `[length]`."""
        start, self.size = self.size, self.size + length
        if self.size > len(self._parent):
            grown = np.zeros(max(self.size, 2 * len(self._parent)), np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        ids = np.arange(start, self.size)
        self._parent[start : self.size] = ids
        return ids

    def find(self, ids: IntArray) -> IntArray:
        """Returns the unit that represents each of `ids`."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def number_roots(self) -> tuple[IntArray, int]:
        """Numbers the representatives 0 to n - 1 in order; returns each unit's number, and n."""
        stands = self.find(np.arange(self.size))
        numbers = np.cumsum(stands == np.arange(self.size)) - 1
        return numbers[stands], int(numbers[-1]) + 1

    def union(self, a: IntArray, b: IntArray) -> bool:
        """Joins the units a[i] and b[i] for every i; returns whether any two were still separate."""
        changed = False
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return changed
            changed = True
            a, b = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            self._parent[b] = a  # of equal b the last wins; the loop joins the others

    def freeze(self, ids: IntArray) -> bool:
        """Makes units unremovable; returns whether any of them was still removable."""
        ids = ids[ids != 0]
        return self.union(ids, np.zeros_like(ids)) if ids.size else False

    def define(self, units: IntArray, tuples: IntArray) -> None:
        """Makes units[i] an alias: it is removed exactly when any of tuples[:, i] is. A 0 in a tuple has no effect."""
        count = (tuples != 0).sum(axis=0)
        self.freeze(units[count == 0])
        single = count == 1
        self.union(units[single], tuples.max(axis=0)[single])
        if (count > 1).any():
            self._aliases.append((units[count > 1], tuples[:, count > 1]))

    def resolve(self) -> tuple[IntArray, IntArray]:
        """Applies unions and aliases to one another until nothing changes any more.

        Returns:
            The aliased units `[n]`, each of them once, and their tuples `[k, n]`, with zeros last.
        """
        if not self._aliases:
            return np.zeros(0, np.int64), np.zeros((1, 0), np.int64)
        width = max(t.shape[0] for _, t in self._aliases)
        units = np.concatenate([u for u, _ in self._aliases])
        tuples = np.concatenate([_pad(t, width) for _, t in self._aliases], axis=1)
        while True:
            units, tuples, changed = self._settle(units, tuples)
            if not changed and not self._break_loops(units, tuples):
                return units, tuples

    def _settle(self, units: IntArray, tuples: IntArray) -> tuple[IntArray, IntArray, bool]:
        """Runs one round of `resolve`; returns the aliases that are left and whether anything changed."""
        units, tuples = self.find(units), pack(self.find(tuples))
        changed = self.freeze(tuples[:, units == 0].ravel())
        count = (tuples != 0).sum(axis=0)
        changed |= self.freeze(units[count == 0])
        single = (count == 1) & (units != 0)
        changed |= self.union(units[single], tuples[0, single])
        left = (count > 1) & (units != 0)
        units, tuples = unique_aliases(units[left], tuples[:, left])
        changed |= self._join_rivals(units, tuples)
        return units, tuples, changed

    def _join_rivals(self, units: IntArray, tuples: IntArray) -> bool:
        """Unifies two tuples of the same unit element by element, or freezes both where their lengths differ."""
        rival = np.flatnonzero(units[1:] == units[:-1])
        if not rival.size:
            return False
        a, b = tuples[:, rival], tuples[:, rival + 1]
        alike = (a != 0).sum(axis=0) == (b != 0).sum(axis=0)
        changed = self.union(a[:, alike].ravel(), b[:, alike].ravel())
        for side in (a[:, ~alike], b[:, ~alike], units[rival][~alike]):
            changed |= self.freeze(side.ravel())
        return changed

    def _break_loops(self, units: IntArray, tuples: IntArray) -> bool:
        """Joins each cycle of aliases into one unit and freezes the units its tuples name outside the cycle."""
        n = len(units)
        place = np.full(self.size, -1)
        place[units] = np.arange(n)
        source, named = np.tile(np.arange(n), len(tuples)), tuples.ravel()
        target = place[named]
        inner = target >= 0
        if not inner.any():
            return False
        edges = coo_array((np.ones(inner.sum()), (source[inner], target[inner])), shape=(n, n))
        _, part = connected_components(edges, directed=True, connection="strong")
        inside = inner & (part[source] == part[target])
        if not inside.any():
            return False
        looped = np.isin(part, part[source[inside]])
        members = np.flatnonzero(looped)
        head = np.zeros(n, np.int64)
        head[part[members]] = members
        self.union(units[members], units[head[part[members]]])
        self.freeze(named[looped[source] & ~inside])
        return True


def pack(tuples: IntArray) -> IntArray:
    """Drops repeated units from each tuple of `[k, n]`, moves zeros to the end, and drops all-zero rows."""
    if tuples.shape[0] > 1:
        for row in range(1, len(tuples)):
            said = np.any(tuples[:row] == tuples[row], axis=0)
            tuples[row, said] = 0
        order = np.argsort(tuples == 0, axis=0, kind="stable")
        tuples = np.take_along_axis(tuples, order, axis=0)
        filled = np.count_nonzero((tuples != 0).sum(axis=1))
        tuples = tuples[: max(1, filled)]
    return tuples


def pack_label(label: Label, forest: UnitForest) -> tuple[IntArray, IntArray]:
    """Returns the units at each position, `[k, n]` with zeros last, and how many each position has, `[n]`."""
    tuples = pack(forest.find(np.stack(label.columns)))
    return tuples, (tuples != 0).sum(axis=0)


def unique_aliases(units: IntArray, tuples: IntArray) -> tuple[IntArray, IntArray]:
    """Sorts the aliases by unit and drops neighbours that are equal."""
    order = np.argsort(units, kind="stable")
    units, tuples = units[order], tuples[:, order]
    new = np.ones(len(units), bool)
    new[1:] = (units[1:] != units[:-1]) | (tuples[:, 1:] != tuples[:, :-1]).any(axis=0)
    return units[new], tuples[:, new]


def _pad(tuples: IntArray, width: int) -> IntArray:
    return np.pad(tuples, ((0, width - len(tuples)), (0, 0)))
