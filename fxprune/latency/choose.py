"""Chooses the units to remove so that a network takes a wished share of its latency, and measures what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.errors import BudgetError
from fxprune.graph.program import Program
from fxprune.importance.table import FloatArray
from fxprune.latency.predict import Predicted, check_runs
from fxprune.latency.spread import Spread
from fxprune.latency.table import LatencyTable
from fxprune.plan.build import plan_removal
from fxprune.plan.choose import Candidates, Target, choose, give_back
from fxprune.remark import Remark
from fxprune.report.latency import Latency
from fxprune.shrink import apply_plan

# A measured share may differ from the wished one by this much of it; the search stops sooner, at the nearest.
TOLERANCE = 0.05
NEAR = 0.015
ROUNDS = 5
# What a prediction may ask for at the utmost, where a measurement shows that it promised too much.
_LEAST_AIM = 0.01


@dataclass(frozen=True)
class _Try:
    units: IntArray
    latency: Latency
    miss: float


class LatencyChooser:
    """Chooses units by predicted latency, measures the smaller network, corrects the prediction, and chooses again.

    Args:
        program: the network.
        axes: its labels, in the mode that it is in.
        target: the share of the latency that is kept.
        table: the times.

    Attributes:
        latency: of the chosen network, with what was wished and what was predicted; None before the choice.

    Raises:
        OptionError: the network has no weights to run with.
    """

    def __init__(self, program: Program, axes: Axes, target: Target, table: LatencyTable) -> None:
        check_runs(program)
        assert isinstance(target.keep, float | int)  # shares of units have no latency
        self._program, self._axes, self._target, self._table = program, axes, target, table
        self._keep = float(target.keep)
        self.latency: Latency | None = None
        self._remarks: list[Remark] = []

    @property
    def remarks(self) -> list[Remark]:
        """On a wish that is not met, and of the table."""
        return [*self._remarks, *self._table.remarks]

    def __call__(self, candidates: Candidates, scores: FloatArray) -> IntArray:
        """The units that go, ascending; none where there are no candidates.

        Raises:
            BudgetError: even the smallest network is predicted to take longer.
        """
        if not candidates.groups:
            return np.zeros(0, np.int64)
        try:
            chosen = self._chosen(candidates, scores)
        finally:
            self._table.save()
        self.latency = chosen.latency
        self._remarks = [_missed(chosen.latency)] if chosen.miss > TOLERANCE else []
        return chosen.units

    def _chosen(self, candidates: Candidates, scores: FloatArray) -> _Try:
        predicted = Predicted(self._program, self._axes, self._table)
        spreads = [
            Spread(predicted, candidates, scores, self._target.at_least, finer) for finer in (1, 4)
        ]
        tries: list[_Try] = []
        aim = self._keep
        for _ in range(ROUNDS):
            try:
                units = self._to(aim, predicted, spreads, candidates, scores)
            except BudgetError:
                if not tries:
                    raise
                break
            if any(np.array_equal(units, t.units) for t in tries):
                break
            tries.append(self._measured(units, predicted))
            if tries[-1].miss <= NEAR:
                break
            aim = self._corrected(tries[-1].latency)
        return min(tries, key=lambda t: t.miss)

    def _to(
        self,
        aim: float,
        predicted: Predicted,
        spreads: Sequence[Spread],
        candidates: Candidates,
        scores: FloatArray,
    ) -> IntArray:
        """The units that go so that a share of the latency is left by prediction."""
        none = np.zeros(self._axes.n_units, bool)
        if self._target.scope == "group":
            target = replace(self._target, keep=aim)
            return choose(self._axes, candidates, scores, target, predicted.total)
        removed = self._nearest(aim * predicted.total(none), predicted, spreads, candidates)
        if removed is None:
            raise self._unreachable(predicted, candidates)
        gone = candidates.gone(removed, self._axes.n_units)
        give_back(self._axes, gone, scores)
        return np.flatnonzero(gone)

    def _nearest(
        self,
        milliseconds: float,
        predicted: Predicted,
        spreads: Sequence[Spread],
        candidates: Candidates,
    ) -> IntArray | None:
        """What the first spread finds that comes near enough; otherwise the last."""
        removed = None
        for spread in spreads:
            removed = spread.to(milliseconds)
            if removed is None:
                return None
            found = predicted.total(candidates.gone(removed, self._axes.n_units))
            if found >= (1 - NEAR) * milliseconds:
                break
        return removed

    def _measured(self, units: IntArray, predicted: Predicted) -> _Try:
        gone = np.zeros(self._axes.n_units, bool)
        share = predicted.total(gone)
        gone[units] = True
        share = predicted.total(gone) / share
        plan = plan_removal(self._program, self._axes, units)
        small = apply_plan(self._program, self._axes, plan)
        found = self._table.compare(self._program, small)
        latency = replace(found, wished=self._keep, predicted=share)
        return _Try(units, latency, abs(found.ratio / self._keep - 1))

    def _corrected(self, latency: Latency) -> float:
        """The share to ask the prediction for, if it errs by the same factor about what is saved."""
        assert latency.predicted is not None
        saved, promised = 1 - latency.ratio, 1 - latency.predicted
        aim = 1 - (1 - self._keep) * promised / saved if saved > 0 else latency.predicted / 2
        return min(1.0, max(_LEAST_AIM, aim))

    def _unreachable(self, predicted: Predicted, candidates: Candidates) -> BudgetError:
        none = np.zeros(len(candidates.groups), np.int64)
        most = candidates.rounded(candidates.sizes, self._target.at_least)
        before, after = (
            predicted.total(candidates.gone(removed, self._axes.n_units))
            for removed in (none, most)
        )
        least = after / before
        return BudgetError(
            f"keep={self._keep} of latency cannot be reached",
            why=f"even if all prunable units are removed, a predicted share of {least:.3f} is left",
            do=f"choose keep >= {np.ceil(least * 1000) / 1000}, or ignore less, or lower multiple_of",
        )


def _missed(latency: Latency) -> Remark:
    return Remark(
        "missed",
        "latency.missed",
        f"keep={latency.wished:g}",
        f"the smaller network takes a share of {latency.ratio:.3f} of the latency",
        f"no choice of units that was tried came nearer; it was predicted to take {latency.predicted:.3f}",
        "measure again on an idle machine with another cache file, choose another keep, or lower multiple_of",
    )
