"""Spreads a removal over groups so that a latency is met at the least loss of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import NamedTuple

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.importance.table import FloatArray
from fxprune.latency.predict import Predicted, round_step
from fxprune.plan.choose import Candidates

# What a group has left of its scores counts as more than nothing, so that its logarithm is a number.
_LEAST = 1e-6
_SLACK = 1e-9


class _Part:
    """One group in the search.

    Args:
        scores: of its units in the order of removal, `[n]`.
        removed: the numbers of units that it may lose, ascending from 0.
        lost: what each set of units loses with the first 0, 1, ... of them, by the number of the set.
    """

    def __init__(self, scores: FloatArray, removed: IntArray, lost: dict[int, IntArray]) -> None:
        self.removed, self.lost = removed, lost
        worth = np.maximum(scores, 0)
        whole = float(worth.sum()) or 1.0
        left = 1 - np.concatenate([[0.0], np.cumsum(worth)]) / whole
        self._loss = [-whole * log(max(left[r], _LEAST)) for r in removed]
        self.place = 0

    def loss(self, place: int) -> float:
        """What the group loses of its scores: their sum times the logarithm of the share that is left.

        The first unit costs its score, as in a plain sum. The fewer are left the more a further one costs, so that no
        layer is emptied for the time that it takes.
        """
        return self._loss[place]

    def moved(self, left: Sequence[int], place: int) -> list[int]:
        """The units that are left of all sets, once the group is at another place."""
        found, old, new = list(left), self.removed[self.place], self.removed[place]
        for number, counts in self.lost.items():
            found[number] -= int(counts[new] - counts[old])
        return found


class _Step(NamedTuple):
    """A number of units that a group may lose next, by its place among such numbers; what that costs and saves."""

    part: int
    place: int
    loss: float
    saved: float


def _price(excess: float) -> Callable[[_Step], tuple[float, int, int]]:
    """The loss for each millisecond that is saved; what is saved beyond the excess is of no use."""
    return lambda step: (step.loss / min(step.saved, excess), step.part, step.place)


class Spread:
    """The greedy search: again and again the step that loses the least score for the time that it saves.

    Steps go to round numbers of units, near and far: a width that is no faster than the one before is passed over.

    Args:
        predicted: the latency at any widths.
        candidates: the groups that may lose units.
        scores: of all units.
        at_least: the number of units that every group keeps.
        finer: into how many parts the distances of round numbers are divided.

    Attributes:
        reached: milliseconds where no step saved any more, and the last search ended without success.
    """

    def __init__(
        self,
        predicted: Predicted,
        candidates: Candidates,
        scores: FloatArray,
        at_least: int,
        finer: int = 1,
    ) -> None:
        self._predicted = predicted
        self.reached = 0.0
        allowed = _allowed(candidates, at_least, finer)
        self._parts = [
            _Part(
                scores[order].reshape(len(order), -1).sum(axis=1),
                removed,
                predicted.widths.lost(order),
            )
            for order, removed in zip(candidates.order, allowed, strict=True)
        ]
        self._terms = [
            [t for t in predicted.terms if not part.lost.keys().isdisjoint(t.sets)]
            for part in self._parts
        ]
        self._near = [
            {j for j, b in enumerate(self._terms) if not {*map(id, a)}.isdisjoint(map(id, b))}
            for a in self._terms
        ]

    def to(self, milliseconds: float) -> IntArray | None:
        """How many units each group loses, so that the whole takes so long; None where it cannot."""
        left = [len(units) for units in self._predicted.widths.sets]
        for part in self._parts:
            part.place = 0
        steps: dict[int, list[_Step]] = {}
        while (excess := self._predicted.at(left) - milliseconds) > 0:
            for i in range(len(self._parts)):
                if i not in steps:
                    steps[i] = self._steps(i, left)
            best = min(
                (s for found in steps.values() for s in found), key=_price(excess), default=None
            )
            if best is None:
                self.reached = excess + milliseconds
                return None
            left = self._move(best.part, best.place, left)
            for near in self._near[best.part]:
                steps.pop(near, None)
        self._give_back(left, milliseconds)
        return np.array([p.removed[p.place] for p in self._parts], np.int64)

    def _steps(self, at: int, left: list[int]) -> list[_Step]:
        """Some next steps of a group that save time."""
        part, now = self._parts[at], self._time(at, left)
        found = []
        for place in _ahead(part.place, len(part.removed)):
            saved = now - self._time(at, part.moved(left, place))
            if saved > _SLACK:
                found.append(_Step(at, place, part.loss(place) - part.loss(part.place), saved))
        return found

    def _time(self, at: int, left: Sequence[int]) -> float:
        return sum(term.at(left) for term in self._terms[at])

    def _move(self, at: int, place: int, left: list[int]) -> list[int]:
        found = self._parts[at].moved(left, place)
        self._parts[at].place = place
        return found

    def _give_back(self, left: list[int], milliseconds: float) -> None:
        """Takes back steps that the latency does not need, the dearest first."""
        waiting = {i for i, part in enumerate(self._parts) if part.place}
        while waiting:
            gains = {i: self._gain(i) for i in waiting}
            at = max(sorted(gains), key=gains.__getitem__)
            part = self._parts[at]
            fewer = part.moved(left, part.place - 1)
            if self._predicted.at(fewer) > milliseconds:
                waiting.discard(at)
                continue
            left = self._move(at, part.place - 1, left)
            if not part.place:
                waiting.discard(at)

    def _gain(self, at: int) -> float:
        part = self._parts[at]
        return part.loss(part.place) - part.loss(part.place - 1)


def _allowed(candidates: Candidates, at_least: int, finer: int) -> list[IntArray]:
    """The numbers of units that each group may lose: those that leave a round number."""
    columns = []
    counts = [_round(len(order), finer) for order in candidates.order]
    most = max(map(len, counts), default=0)
    for i in range(most):
        wanted = np.array([c[min(i, len(c) - 1)] for c in counts], np.int64)
        columns.append(candidates.rounded(wanted, at_least))
    table = np.stack(columns, axis=1) if columns else np.zeros((0, 0), np.int64)
    return [np.unique(np.append(row, 0)) for row in table]


def _round(full: int, finer: int) -> list[int]:
    """The numbers of units to remove of so many, so that a round number is left.

    >>> _round(64, 1)[:3], _round(64, 4)[:3]
    ([0, 8, 16], [0, 2, 4])
    """
    coarse = round_step(full)
    step = max(1, (min(coarse, max(8, coarse // 4))) // finer)
    return [full - n for n in range(step * (full // step), 0, -step)]


def _ahead(place: int, count: int) -> list[int]:
    """Places after one: the next ones, then others farther and farther away, and the last."""
    steps = (place + (1 << i) for i in range(count.bit_length()))
    return sorted({p for p in steps if p < count} | ({count - 1} - {place}))
