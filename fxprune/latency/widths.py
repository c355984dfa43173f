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
class Part:
    """Some positions of an axis; a product over factors, such as heads times channels.

    Attributes:
        share: of the positions of the axis.
        sets: the numbers of the sets of units that remove them, one for each factor.
    """

    share: float
    sets: tuple[int, ...]


@dataclass(frozen=True)
class Width:
    """The length of an axis as a sum over its parts.

    Attributes:
        full: the length before anything is removed.
        parts: all positions.
    """

    full: int
    parts: tuple[Part, ...]

    @property
    def sets(self) -> set[int]:
        """The numbers of the sets of units that can make it shorter."""
        return {s for part in self.parts for s in part.sets}

    def at(self, shares: Mapping[int, float]) -> int:
        """The length where such a share of the units of each set is left."""
        left = (part.share * prod(shares[s] for s in part.sets) for part in self.parts)
        return round(self.full * sum(left))


class Widths:
    """The sets of units that the axes of a program stand for; two axes that lose positions together share one.

    Attributes:
        sets: the units of each set, ascending.
    """

    def __init__(self, axes: Axes) -> None:
        self.sets: list[IntArray] = []
        self._axes = axes
        self._numbers: dict[bytes, int] = {}
        self._known: dict[int, tuple[Label, tuple[Part, ...]]] = {}

    def of(self, label: Label, length: int) -> Width:
        """The width of an axis of a node.

        Args:
            label: its label, as in `Axes.nodes`.
            length: its length; that of a label may be another one, where it depends on the inputs.
        """
        found = self._known.get(id(label))
        if found is None:
            parts = self._parts(self._axes.final(label))
            found = self._known[id(label)] = label, parts
        return Width(length, found[1])

    def _parts(self, label: Label) -> tuple[Part, ...]:
        """Splits an axis where other columns count, or where units have more or fewer positions."""
        if not label.columns:
            return (Part(1.0, ()),)
        each = [np.bincount(c, minlength=self._axes.n_units) for c in label.columns]
        often = np.stack([n[c] * (c > 0) for n, c in zip(each, label.columns, strict=True)])
        kinds, which = np.unique(often, axis=1, return_inverse=True)
        parts = []
        for i, kind in enumerate(kinds.T):
            here = which.reshape(-1) == i
            columns = (c[here] for c, n in zip(label.columns, kind, strict=True) if n)
            parts.append(Part(float(here.mean()), tuple(map(self._number, columns))))
        return tuple(parts)

    def _number(self, column: IntArray) -> int:
        units = distinct(column, self._axes.n_units)
        number = self._numbers.setdefault(units.tobytes(), len(self.sets))
        if number == len(self.sets):
            self.sets.append(units)
        return number

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
