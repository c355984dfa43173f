"""The operations available to a rule: it unifies, splits and freezes labels, and marks what shrinking must adjust."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fxprune.algebra.forest import UnitForest, pack_label
from fxprune.algebra.label import IntArray, Label, concat, frozen, merge
from fxprune.algebra.reshape import runs

Axes = tuple[Label, ...]


@dataclass
class NodeMarks:
    """What a rule declared about one node, besides the labels of its outputs.

    Attributes:
        silenced: axes that are contracted or summed over; removed positions count as zero there.
        statistics: axes whose statistics are taken over the kept positions only.
        rescaled: averaged axes; the result is multiplied by kept length / original length.
        spelled: arguments that repeat the length of an axis, by argument name: a label, or for a list
            argument a tuple of labels.
        pinned: arguments whose default is derived from a length, by argument name: (value, label).
        bounds: arguments that give a position of an axis, perhaps counted from its end, by argument
            name: (label of the axis up to that position, label of the whole axis).
    """

    silenced: list[Label] = field(default_factory=list)
    statistics: list[Label] = field(default_factory=list)
    rescaled: list[Label] = field(default_factory=list)
    spelled: dict[str, Label | tuple[Label | None, ...]] = field(default_factory=dict)
    pinned: dict[str, tuple[float, Label]] = field(default_factory=dict)
    bounds: dict[str, tuple[Label, Label]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Coupling:
    """One step of the analysis, recorded for explanations; `b` is None if `a` was frozen."""

    node: Any
    a: Label
    b: Label | None
    why: str


class Units:
    """The state of one analysis; it is the argument `u` of every rule.

    Attributes:
        out: the sizes of the current node's output, or a list of sizes for several outputs.
        marks: what the rules declared, by node.
        couplings: every union, alias and freeze, with the node that asked for it.
    """

    def __init__(self) -> None:
        self.forest = UnitForest()
        self.marks: dict[Any, NodeMarks] = {}
        self.couplings: list[Coupling] = []
        self.out: Any = ()
        self._node: Any = None
        self._symbolic: Collection[int] = ()
        self._arguments: Collection[str] = ()
        self._splits: dict[tuple[bytes, int], tuple[IntArray, IntArray]] = {}

    def enter(
        self,
        node: Any,
        out: Any,
        *,
        symbolic: Collection[int] = (),
        arguments: Collection[str] = (),
    ) -> None:
        """Makes `node` the node to which further calls refer.

        Args:
            node: any hashable object.
            out: the sizes of its output, or a list of sizes for several outputs.
            symbolic: the axes of the (first) output whose length may differ from run to run.
            arguments: the names of the operator's arguments.
        """
        self._node, self.out = node, out
        self._symbolic, self._arguments = symbolic, arguments

    def symbolic(self, axis: int) -> bool:
        """Returns whether the length of an output axis may differ from run to run."""
        return axis in self._symbolic

    def argument(self, name: str) -> bool:
        """Returns whether the operator has an argument of this name."""
        return name in self._arguments

    def fresh(self, sizes: Sequence[int]) -> Axes:
        """Returns labels with a new unit for every position of every axis, axes of length 1 included."""
        return tuple(Label(n, (self.forest.fresh(n),)) for n in sizes)

    def freeze(self, *labels: Label, why: str = "the result depends on every position") -> None:
        """Makes every position of these axes unremovable; `why` is the reason that `fp.explain` prints."""
        for label in labels:
            if label.columns:
                self._log(label, None, why)
                for column in label.columns:
                    self.forest.freeze(column)

    def unify(self, *labels: Label) -> Label:
        """Couples axes of equal length: they lose the same positions. Returns the most detailed label."""
        best = labels[0]
        for label in labels[1:]:
            best = self._unify(best, label)
        return best

    def _unify(self, a: Label, b: Label) -> Label:
        if a is b or _same(a, b):
            return a
        if len(a) != len(b):
            self.freeze(a, b, why=f"the axes have different lengths, {len(a)} and {len(b)}")
            return a
        if not (a.columns and b.columns):
            self.freeze(a, b, why="it is coupled with a frozen axis")
            return Label(len(a))
        self._log(a, b, "same positions")
        if len(a.columns) == len(b.columns) == 1:
            self.forest.union(a.columns[0], b.columns[0])
            return a
        self._unify_tuples(a, b)
        return a if len(a.columns) >= len(b.columns) else b

    def _unify_tuples(self, a: Label, b: Label) -> None:
        (ta, na), (tb, nb) = pack_label(a, self.forest), pack_label(b, self.forest)
        both = (na == nb) & (na > 0)
        rows = min(len(ta), len(tb))
        self.forest.union(ta[:rows, both].ravel(), tb[:rows, both].ravel())
        lead, follow = (na == 1) & (nb > 1), (nb == 1) & (na > 1)
        self.forest.define(ta[0, lead], tb[:, lead])
        self.forest.define(tb[0, follow], ta[:, follow])
        rest = ~(both | lead | follow)
        self.forest.freeze(ta[:, rest].ravel())
        self.forest.freeze(tb[:, rest].ravel())

    def broadcast(self, *operands: Any) -> Axes:
        """Couples the operands of an elementwise operator, aligned at their last axes as torch broadcasts them.

        Operands that are not tensors are ignored. Returns the labels of the result.
        """
        tensors = [o for o in operands if isinstance(o, tuple)]
        rank = max((len(t) for t in tensors), default=0)
        return tuple(
            self._broadcast_axis([t[i - rank] for t in tensors if len(t) >= rank - i])
            for i in range(rank)
        )

    def _broadcast_axis(self, labels: list[Label]) -> Label:
        length = max((len(x) for x in labels), key=lambda n: (n != 1, n))
        if length != 1:
            self.freeze(
                *(x for x in labels if len(x) == 1), why="the axis has length 1 and is broadcast"
            )
        return self.unify(*(x for x in labels if len(x) == length))

    def split(self, label: Label, *sizes: int) -> Axes:
        """Views an axis as several axes of `sizes`, outermost first; one size may be -1.

        Only whole slices along one of the new axes can be removed. Returns the labels of the new axes.
        """
        known = int(np.prod([s for s in sizes if s != -1]))
        filled = [len(label) // known if s == -1 else s for s in sizes]
        out: list[Label] = []
        rest = label
        for size in filled[:-1]:
            row, rest = self._split(rest, size)
            out.append(row)
        return (*out, rest)

    def _split(self, label: Label, outer: int) -> tuple[Label, Label]:
        inner = len(label) // outer
        if outer == 1:
            return Label(1), label
        if inner == 1:
            return label, Label(1)
        rows: list[IntArray] = []
        columns: list[IntArray] = []
        for column in label.columns:
            grid = self.forest.find(column).reshape(outer, inner)
            if (grid == grid[:, :1]).all():
                parts = grid[:, 0], np.zeros(inner, np.int64)
            elif (grid == grid[:1]).all():
                parts = np.zeros(outer, np.int64), grid[0]
            else:
                parts = self._rectangle(grid)
            for found, known in zip(parts, (rows, columns), strict=True):
                if found.any() and not any(np.array_equal(found, k) for k in known):
                    known.append(found)
        return Label(outer, tuple(rows)), Label(inner, tuple(columns))

    def _rectangle(self, grid: IntArray) -> tuple[IntArray, IntArray]:
        """Makes units for the rows and the columns of a grid whose units follow neither rows nor columns.

        A row or column that holds a frozen position cannot be removed: its unit is 0. Equal rows name
        the same units and are removed together, and so are equal columns: each is computed once.
        """
        key = (grid.tobytes(), len(grid))
        if key not in self._splits:
            (once, row_of), (different, column_of) = distinct_rows(grid), distinct_rows(grid.T)
            small = grid[np.ix_(once, different)]
            outer, inner = small.shape
            stays = small == 0
            row = np.where(stays.any(axis=1), 0, self.forest.fresh(outer))
            column = np.where(stays.any(axis=0), 0, self.forest.fresh(inner))
            parts = np.stack([np.repeat(row, inner), np.tile(column, outer)])
            self.forest.define(small.ravel(), parts)
            self._log(
                Label(small.size, (small.ravel(),)),
                Label(small.size, tuple(parts)),
                f"the axis is viewed as {grid.shape[0]} x {grid.shape[1]}",
            )
            self._splits[key] = row[row_of], column[column_of]
        return self._splits[key]

    def reshape(self, axes: Axes, sizes: Sequence[int]) -> Axes:
        """Returns the labels after a view to `sizes`: the shortest runs of equal products are merged, then split."""
        out: list[Label] = []
        for old, new in runs([len(x) for x in axes], list(sizes)):
            run = axes[old]
            target = sizes[new]
            if len(run) == len(target) == 1:
                out.append(run[0])
                continue
            ones = [x for x in run if len(x) == 1]
            self.freeze(*ones, why="the axis has length 1 and is dropped")
            wide = [x for x in run if len(x) != 1]
            flat = merge(*wide) if wide else Label(1)
            out.extend(self._split_run(flat, target))
        return tuple(out)

    def _split_run(self, flat: Label, sizes: Sequence[int]) -> list[Label]:
        wide = [s for s in sizes if s != 1]
        parts = iter(self.split(flat, *wide) if len(wide) > 1 else [flat])
        return [Label(1) if s == 1 else next(parts) for s in sizes]

    def contract(self, a: Label, b: Label) -> Label:
        """Couples two axes that are multiplied with each other and summed over."""
        self.silence(a, b)
        return self.unify(a, b)

    def silence(self, *labels: Label) -> None:
        """Marks axes that are summed over: a removed position adds nothing to the sum."""
        self._marks().silenced.extend(x for x in labels if x.columns)

    def reduce(self, axes: Axes, dims: Iterable[int], keepdim: bool = False) -> Axes:
        """Sums over the axes `dims` and returns the labels that are left.

        Removing positions of a summed axis is exact, because a silenced position adds nothing.
        """
        dims = {d % len(axes) for d in dims} if axes else set()
        self.silence(*(axes[d] for d in dims))
        return drop(axes, dims, keepdim=keepdim)

    def renormalise(self, *labels: Label) -> None:
        """Marks axes whose statistics change when positions are removed; this is allowed, and reported."""
        self._marks().statistics.extend(x for x in labels if x.columns)

    def rescale(self, *labels: Label) -> None:
        """Marks averaged axes: the shrunk program multiplies the result by kept length / original length."""
        self._marks().rescaled.extend(x for x in labels if x.columns)

    def spell(self, argument: str, *labels: Label | None, single: bool = False) -> None:
        """Declares that an argument repeats the lengths of axes (it "spells" them).

        Args:
            argument: the name of the argument.
            *labels: the axis that each entry of the argument refers to; None for an entry that refers to none.
            single: the argument is one number, not a list.
        """
        if any(x is not None and x.columns for x in labels):
            self._marks().spelled[argument] = (
                labels[0] if single and labels[0] is not None else labels
            )

    def bound(self, argument: str, position: int, whole: Label) -> None:
        """Declares that an argument gives a position of the axis `whole`, perhaps counted from its end."""
        if whole.columns:
            self._marks().bounds[argument] = whole.take(slice(0, position)), whole

    def pin(self, argument: str, value: float, label: Label) -> None:
        """Fixes an argument, whose default is derived from the length of `label`, at `value`."""
        if label.columns:
            self._marks().pinned[argument] = value, label

    def _marks(self) -> NodeMarks:
        return self.marks.setdefault(self._node, NodeMarks())

    def _log(self, a: Label, b: Label | None, why: str) -> None:
        self.couplings.append(Coupling(self._node, a, b, why))


def drop(axes: Axes, dims: Iterable[int], *, keepdim: bool = False) -> Axes:
    """Returns the labels without those at `dims`; with `keepdim`, frozen axes of length 1 replace them."""
    gone = set(dims)
    if keepdim:
        return tuple(Label(1) if i in gone else x for i, x in enumerate(axes))
    return tuple(x for i, x in enumerate(axes) if i not in gone)


def distinct_rows(grid: IntArray) -> tuple[IntArray, IntArray]:
    """Returns the index of the first of each set of equal rows, and for each row the number of its set.

    Rows are told apart by their first entry; where that does not suffice, every row counts as distinct.
    """
    _, first, place = np.unique(grid[:, 0], return_index=True, return_inverse=True)
    if len(first) == len(grid) or not np.array_equal(grid, grid[first[place]]):
        return np.arange(len(grid)), np.arange(len(grid))
    order = np.argsort(first)
    return first[order], np.argsort(order)[place]


def _same(a: Label, b: Label) -> bool:
    return len(a.columns) == len(b.columns) and all(
        x is y for x, y in zip(a.columns, b.columns, strict=True)
    )


__all__ = ["Axes", "Coupling", "Label", "NodeMarks", "Units", "concat", "drop", "frozen", "merge"]
