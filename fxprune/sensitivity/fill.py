"""Spreads a removal over groups so that the loss rises least, as if the rises of single groups added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.cost import Cost, Metric, mac_terms, param_terms
from fxprune.errors import BudgetError
from fxprune.graph.program import Program
from fxprune.importance.table import FloatArray
from fxprune.latency import LatencyTable, Predicted
from fxprune.plan.choose import Candidates, Target


class Curve(Protocol):
    """The rise of the loss at some numbers of removed units, ascending."""

    @property
    def removed(self) -> Sequence[int]: ...

    @property
    def rise(self) -> Sequence[float]: ...


class Price(Protocol):
    """What is left of a metric after a removal, and what each unit saves in addition to it."""

    def total(self, gone: BoolArray) -> float: ...

    def gradient(self, gone: BoolArray) -> FloatArray: ...


class Piece(NamedTuple):
    """A straight piece of a curve that bends upwards: so many units more, and so much loss more for each."""

    end: int
    slope: float


class Units:
    """The number of units as a price."""

    def __init__(self, n_units: int) -> None:
        self._count = n_units - 1

    def total(self, gone: BoolArray) -> int:
        """How many are left."""
        return self._count - int(gone.sum())

    def gradient(self, gone: BoolArray) -> FloatArray:
        """1 for each that is left."""
        return np.where(gone, 0.0, 1.0)


def price_of(
    program: Program, axes: Axes, metric: Metric, latencies: LatencyTable | None = None
) -> Price:
    """The price of a removal by metric; for latency as predicted from a table.

    Raises:
        OptionError: the metric is latency, and the program cannot run.
    """
    if metric == "latency":
        return Predicted(program, axes, latencies or LatencyTable())
    if metric == "units":
        return Units(axes.n_units)
    terms = mac_terms(program, axes) if metric == "macs" else param_terms(program, axes)
    return Cost(terms, axes.n_units)


def pieces(curve: Curve) -> list[Piece]:
    """The largest curve below the points that bends upwards, from no removal on (its lower convex hull)."""
    points = [(0, 0.0), *zip(curve.removed, curve.rise, strict=True)]
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [Piece(b[0], _slope(a, b)) for a, b in pairwise(hull)]


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


class Filling:
    """How many units each group loses.

    Args:
        price: what is left of a metric.
        axes: the labels of a network.
        candidates: the groups that may lose units, and their order.
        target: the metric, and the multiples and least numbers of units that hold.
        curves: name of a group -> what was measured of it; others lose nothing.
    """

    def __init__(
        self,
        price: Price,
        axes: Axes,
        candidates: Candidates,
        target: Target,
        curves: Mapping[str, Curve],
    ) -> None:
        self._candidates, self._target, self._n_units = candidates, target, axes.n_units
        self._price = price
        self._pieces = [
            pieces(curves[g.name]) if g.name in curves else [] for g in candidates.groups
        ]

    def to_budget(self, keep: float) -> IntArray:
        """How many units each group loses, so that a share of the price is left.

        Raises:
            BudgetError: more is left even at the ends of the curves.
        """
        removed = np.zeros(len(self._candidates.groups), np.int64)
        whole = self._left(removed)
        waiting = [list(p) for p in self._pieces]
        taken: list[tuple[int, int]] = []
        while self._left(removed) > keep * whole:
            at = self._cheapest(removed, waiting)
            if at is None:
                share = np.ceil(self._left(removed) / whole * 1000) / 1000
                raise BudgetError(
                    f"keep={keep} of {self._target.metric} cannot be reached",
                    why=f"with the largest shares that were measured, a share of {share} is left",
                    do=f"choose keep >= {share}, or measure more: fp.sensitivity(..., shares=(..., 0.9))",
                )
            taken.append((at, int(removed[at])))
            removed[at] = waiting[at].pop(0).end
        for at, before in reversed(taken):
            self._shorten(removed, at, before, keep * whole)
        return self._rounded(removed)

    def _shorten(self, removed: IntArray, at: int, before: int, budget: float) -> None:
        """Takes back of a piece what the budget does not need."""
        low, high = before - 1, int(removed[at])
        while high - low > 1:
            removed[at] = middle = (low + high) // 2
            low, high = (low, middle) if self._left(removed) <= budget else (middle, high)
        removed[at] = high

    def _cheapest(self, removed: IntArray, waiting: Sequence[Sequence[Piece]]) -> int | None:
        """The group whose next piece costs the least loss for what it saves."""
        saved = self._price.gradient(self._gone(removed))
        best, least = None, np.inf
        for i, left in enumerate(waiting):
            if left:
                units = self._candidates.order[i][removed[i] : left[0].end]
                each = float(saved[units].sum()) / max(1, len(units))
                ratio = left[0].slope / each if each > 0 else np.finfo(float).max
                if best is None or ratio < least:
                    best, least = i, ratio
        return best

    def _left(self, removed: IntArray) -> float:
        return self._price.total(self._gone(self._rounded(removed)))

    def _rounded(self, removed: IntArray) -> IntArray:
        return self._candidates.rounded(removed, self._target.at_least)

    def _gone(self, removed: IntArray) -> BoolArray:
        return self._candidates.gone(removed, self._n_units)
