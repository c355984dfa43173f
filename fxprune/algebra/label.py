"""The label of one axis: which units remove which of its positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Label:
    """An axis of `length` positions; position p goes when the unit in any column at p goes.

    Unit 0 is frozen and neutral beside other columns; a label without columns is a frozen axis.
    Labels compare by identity: an axis that is handed on unchanged keeps its label.
    """

    length: int
    columns: tuple[IntArray, ...] = ()

    def __len__(self) -> int:
        return self.length

    def take(self, index: slice | IntArray) -> Label:
        """The label of the axis after indexing it with a slice or positions."""
        columns = tuple(c[index] for c in self.columns)
        length = len(columns[0]) if columns else len(np.arange(self.length)[index])
        return Label(length, columns)

    def tile(self, times: int) -> Label:
        """The whole axis, `times` over."""
        return Label(self.length * times, tuple(np.tile(c, times) for c in self.columns))

    def repeat(self, times: int) -> Label:
        """Each position `times` over."""
        return Label(self.length * times, tuple(np.repeat(c, times) for c in self.columns))


def frozen(lengths: Sequence[int]) -> tuple[Label, ...]:
    """Labels of axes that never change."""
    return tuple(Label(n) for n in lengths)


def merge(*labels: Label) -> Label:
    """The label of axes flattened into one, outermost first; frozen axes of length 1 add nothing."""
    labels = tuple(x for x in labels if x.length != 1 or x.columns) or labels[:1]
    out = labels[0]
    for inner in labels[1:]:
        columns = out.repeat(inner.length).columns + inner.tile(out.length).columns
        out = Label(out.length * inner.length, columns)
    return out


def concat(parts: Sequence[Label]) -> Label:
    """The label of parts put one after the other; a part with fewer columns is filled with unit 0."""
    blanks = [np.zeros(p.length, np.int64) for p in parts]
    rows = zip_longest(*(p.columns for p in parts))
    columns = [[b if c is None else c for c, b in zip(row, blanks, strict=True)] for row in rows]
    return Label(sum(p.length for p in parts), tuple(np.concatenate(c) for c in columns))
