"""How many positions axes have left, told by how many units are left of the sets that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.analysis.group import distinct


@dataclass(frozen=True)
class Factor:
    """One factor of an axis, such as the heads of an axis of heads times channels.

    Attributes:
        units: the number of the set whose units remove its positions.
        frozen: the share of positions that no unit removes.
    """

    units: int
    frozen: float


@dataclass(frozen=True)
class Width:
    """The length of an axis as a product over its factors.

    Attributes:
        full: the length before anything is removed.
        factors: what can make it shorter.
    """

    full: int
    factors: tuple[Factor, ...]

    def at(self, shares: Mapping[int, float]) -> int:
        """The length where such a share of the units of each set is left."""
        left = (f.frozen + (1 - f.frozen) * shares[f.units] for f in self.factors)
        return round(self.full * prod(left))


class Widths:
    """The sets of units that the axes of a program stand for; two axes that lose positions together share one.

    Attributes:
        sets: the units of each set, ascending.
    """

    def __init__(self, axes: Axes) -> None:
        self.sets: list[IntArray] = []
        self._axes = axes
        self._numbers: dict[bytes, int] = {}
        self._known: dict[int, tuple[Label, tuple[Factor, ...]]] = {}

    def of(self, label: Label, length: int) -> Width:
        """The width of an axis of a node.

        Args:
            label: its label, as in `Axes.nodes`.
            length: its length; that of a label may be another one, where it depends on the inputs.
        """
        found = self._known.get(id(label))
        if found is None:
            columns = self._axes.final(label).columns
            found = self._known[id(label)] = label, tuple(map(self._factor, columns))
        return Width(length, found[1])

    def _factor(self, column: IntArray) -> Factor:
        units = distinct(column, self._axes.n_units)
        number = self._numbers.setdefault(units.tobytes(), len(self.sets))
        if number == len(self.sets):
            self.sets.append(units)
        return Factor(number, float((column == 0).mean()))

    def left(self, gone: BoolArray) -> list[int]:
        """The number of units that are left of each set, once those in the mask `gone`, `[n_units]`, are removed."""
        return [len(units) - int(gone[units].sum()) for units in self.sets]

    def lost(self, order: IntArray) -> dict[int, IntArray]:
        """How many units each set loses with the first 0, 1, ... of some units.

        Args:
            order: units, `[n]`, or units that are removed together, `[n, k]`.

        Returns:
            Of each set that loses any, its counts, `[n + 1]`.
        """
        inside = np.zeros(self._axes.n_units, bool)
        found: dict[int, IntArray] = {}
        for number, units in enumerate(self.sets):
            inside[units] = True
            hits = inside[order].reshape(len(order), -1).sum(axis=1)
            inside[units] = False
            if hits.any():
                found[number] = np.concatenate([[0], np.cumsum(hits)])
        return found
