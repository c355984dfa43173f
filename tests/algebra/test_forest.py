"""Unions and aliases against a slow fixpoint of plain sets and lists."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.algebra.forest import UnitForest, pack
from fxprune.algebra.reshape import runs

Alias = tuple[int, list[int]]
SIZE = 7


class Slow:
    """What docs say of unions and aliases, one after the other."""

    def __init__(self, size: int) -> None:
        self.stands = list(range(size))
        self.aliases: list[Alias] = []

    def join(self, a: int, b: int) -> None:
        low, high = sorted((self.stands[a], self.stands[b]))
        self.stands = [low if x == high else x for x in self.stands]

    def define(self, unit: int, parts: list[int]) -> None:
        named = [p for p in parts if p]
        if len(named) > 1:
            self.aliases.append((unit, parts))
        else:
            self.join(unit, named[0] if named else 0)

    def resolve(self) -> list[Alias]:
        while True:
            before = list(self.stands)
            found = self._packed()
            self._settle(found)
            if self.stands == before:
                self._break_loops(found)
            if self.stands == before:
                return found

    def _packed(self) -> list[Alias]:
        """Each alias once, sorted by its unit; each part once, in order, without the frozen ones."""
        found: list[Alias] = []
        for unit, parts in self.aliases:
            one = (self.stands[unit], list(dict.fromkeys(self.stands[p] for p in parts)))
            one[1][:] = [p for p in one[1] if p]
            if one not in found:
                found.append(one)
        return sorted(found, key=lambda one: one[0])

    def _settle(self, found: list[Alias]) -> None:
        for unit, parts in list(found):
            if unit == 0 or len(parts) < 2:
                for part in parts if unit == 0 else [*parts[:1], *[0] * (not parts)]:
                    self.join(part, unit)
                found.remove((unit, parts))
        for (unit, one), (other, two) in pairwise(found):
            if unit == other and len(one) == len(two):
                for a, b in zip(one, two, strict=True):
                    self.join(a, b)
            elif unit == other:
                for part in (unit, *one, *two):
                    self.join(part, 0)

    def _break_loops(self, found: list[Alias]) -> None:
        names = dict(found)
        reach: dict[int, set[int]] = {unit: set(parts) for unit, parts in found}
        for _ in names:
            for seen in reach.values():
                seen |= {p for unit in seen & names.keys() for p in reach[unit]}
        for unit, parts in found:
            for part in parts if unit in reach[unit] else ():
                inside = part in names and unit in reach[part]
                self.join(part, unit if inside else 0)


units = st.integers(0, SIZE - 1)
pairs = st.lists(st.tuples(units, units), max_size=3)
definitions = st.lists(
    st.tuples(st.integers(1, SIZE - 1), st.lists(units, min_size=2, max_size=3)), max_size=5
)


@settings(max_examples=400)
@given(pairs, definitions)
def test_the_fixpoint_is_that_of_plain_sets(
    joined: list[tuple[int, int]], defined: list[tuple[int, list[int]]]
) -> None:
    forest, slow = UnitForest(), Slow(SIZE)
    forest.fresh(SIZE - 1)
    for a, b in joined:
        forest.union(np.array([a]), np.array([b]))
        slow.join(a, b)
    for unit, parts in defined:
        forest.define(np.array([unit]), np.array(parts)[:, None])
        slow.define(unit, parts)
    left, tuples = forest.resolve()
    wanted = slow.resolve()
    assert forest.find(np.arange(SIZE)).tolist() == slow.stands
    found = [
        (int(u), [int(p) for p in column if p]) for u, column in zip(left, tuples.T, strict=True)
    ]
    assert sorted(found) == sorted(wanted)
    numbers, count = forest.number_roots()
    assert count == len(set(slow.stands))
    assert numbers.max(initial=0) == count - 1


def test_definitions_come_many_at_once() -> None:
    forest = UnitForest()
    forest.fresh(7)
    parts = np.array([[0, 5, 4, 6], [0, 0, 5, 6]])
    forest.define(np.array([1, 2, 3, 7]), parts)
    left, tuples = forest.resolve()
    assert forest.find(np.array([1, 2, 7])).tolist() == [0, 2, 6]
    assert forest.find(np.array([5])).tolist() == [2]
    assert (left.tolist(), tuples.T.tolist()) == ([3], [[4, 2]])


@pytest.mark.parametrize(("old", "new"), [([0, 3], [3, 0]), ([2, 0], [0]), ([0], [4, 0, 5])])
def test_sizes_of_0_are_one_run(old: list[int], new: list[int]) -> None:
    assert list(runs(old, new)) == [(slice(0, len(old)), slice(0, len(new)))]


@pytest.mark.parametrize(
    ("tuples", "packed"),
    [
        ([[1, 2], [1, 2]], [[1, 2]]),
        ([[0, 4], [3, 0], [3, 5]], [[3, 4], [0, 5]]),
        ([[0, 0], [0, 0]], [[0, 0]]),
        ([[0, 7]], [[0, 7]]),
    ],
)
def test_pack(tuples: list[list[int]], packed: list[list[int]]) -> None:
    assert pack(np.array(tuples)).tolist() == packed
