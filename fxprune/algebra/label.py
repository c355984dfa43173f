"""The label of an axis: it says which units remove which positions of the axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Label:
    """The label of an axis with `length` positions.

    Each column names one unit for every position; position p is removed when the unit at p in any
    column is removed. Unit 0 is frozen: beside other columns it has no effect. A label without
    columns belongs to a frozen axis. Labels compare by identity: an axis that passes through an
    operator unchanged keeps its label.

    Attributes:
        length: the number of positions.
        columns: int64 arrays of units, each `[length]`.
    """

    length: int
    columns: tuple[IntArray, ...] = ()

    def __len__(self) -> int:
        return self.length

    def take(self, index: slice | IntArray) -> Label:
        """Returns the label after indexing the axis with a slice or with positions."""
        columns = tuple(c[index] for c in self.columns)
        length = len(columns[0]) if columns else len(np.arange(self.length)[index])
        return Label(length, columns)

    def tile(self, times: int) -> Label:
        """Returns the label of the whole axis repeated `times` times, as `torch.tile` does."""
        return Label(self.length * times, tuple(np.tile(c, times) for c in self.columns))

    def repeat(self, times: int) -> Label:
        """Returns the label with each position repeated `times` times, as `torch.repeat_interleave` does."""
        return Label(self.length * times, tuple(np.repeat(c, times) for c in self.columns))


def frozen(lengths: Sequence[int]) -> tuple[Label, ...]:
    """Returns labels of frozen axes with these lengths."""
    return tuple(Label(n) for n in lengths)


def merge(*labels: Label) -> Label:
    """Returns the label of several axes flattened into one, outermost axis first."""
    labels = tuple(x for x in labels if x.length != 1 or x.columns) or labels[:1]
    out = labels[0]
    for inner in labels[1:]:
        columns = out.repeat(inner.length).columns + inner.tile(out.length).columns
        out = Label(out.length * inner.length, columns)
    return out


def concat(parts: Sequence[Label]) -> Label:
    """Returns the label of axes concatenated in order; missing columns are filled with unit 0."""
    blanks = [np.zeros(p.length, np.int64) for p in parts]
    rows = zip_longest(*(p.columns for p in parts))
    columns = [[b if c is None else c for c, b in zip(row, blanks, strict=True)] for row in rows]
    return Label(sum(p.length for p in parts), tuple(np.concatenate(c) for c in columns))
