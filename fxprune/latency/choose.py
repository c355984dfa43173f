"""Chooses the units to remove so that a network takes a wished share of its latency, and measures what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes, BoolArray
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
_LEAST_STRETCH = 0.1


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
        self._program, self._axes, self._target, self._table = program, axes, target, table
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
            search = _Search(
                self._program, self._axes, self._target, self._table, candidates, scores
            )
            chosen = search.run()
        finally:
            self._table.save()
        self.latency = chosen.latency
        self._remarks = [_missed(chosen.latency)] if chosen.miss > TOLERANCE else []
        return chosen.units


@dataclass(frozen=True)
class _Try:
    """A choice of units, and what was measured without them."""

    units: IntArray
    latency: Latency
    miss: float


class _Search:
    """Rounds of choosing, measuring and correcting.

    Attributes:
        stretch: what a removal saved when it was last measured, over what operators alone had promised.
    """

    def __init__(
        self,
        program: Program,
        axes: Axes,
        target: Target,
        table: LatencyTable,
        candidates: Candidates,
        scores: FloatArray,
    ) -> None:
        assert isinstance(target.keep, float | int)  # shares of units have no latency
        self._program, self._axes, self._target, self._table = program, axes, target, table
        self._candidates, self._scores, self._keep = candidates, scores, float(target.keep)
        self._predicted = Predicted(program, axes, table)
        self._whole = self._predicted.total(np.zeros(axes.n_units, bool))
        self._spreads = [
            Spread(self._predicted, candidates, scores, target.at_least, finer) for finer in (1, 4)
        ]
        self.stretch = 1.0

    def run(self) -> _Try:
        """The choice whose measured latency is nearest to the wish.

        Raises:
            BudgetError: by prediction none comes down to it.
        """
        tries: list[_Try] = []
        for _ in range(ROUNDS):
            try:
                units = self._choice()
            except BudgetError:
                if not tries:
                    raise
                break
            if any(np.array_equal(units, t.units) for t in tries):
                break
            tries.append(self._measured(units))
            if tries[-1].miss <= NEAR:
                break
        return min(tries, key=lambda t: t.miss)

    def _choice(self) -> IntArray:
        """The units that go so that the wished share is left by prediction."""
        aim = min(1.0, max(_LEAST_AIM, 1 - (1 - self._keep) / self.stretch))
        if self._target.scope == "group":
            target = replace(self._target, keep=aim)
            return choose(self._axes, self._candidates, self._scores, target, self._predicted.total)
        gone = self._spread(aim)
        give_back(self._axes, gone, self._scores)
        return np.flatnonzero(gone)

    def _spread(self, aim: float) -> BoolArray:
        """What the first spread finds that comes near enough; otherwise the last."""
        gone = np.zeros(self._axes.n_units, bool)
        for spread in self._spreads:
            removed = spread.to(aim * self._whole)
            if removed is None:
                raise self._unreachable(spread.reached / self._whole)
            gone = self._candidates.gone(removed, self._axes.n_units)
            if self._predicted.total(gone) >= (1 - NEAR) * aim * self._whole:
                break
        return gone

    def _measured(self, units: IntArray) -> _Try:
        gone = np.zeros(self._axes.n_units, bool)
        gone[units] = True
        promised = 1 - self._predicted.total(gone) / self._whole
        plan = plan_removal(self._program, self._axes, units)
        small = apply_plan(self._program, self._axes, plan)
        found = self._table.compare(self._program, small)
        predicted = max(_LEAST_AIM, 1 - self.stretch * promised)
        latency = replace(found, wished=self._keep, predicted=predicted)
        if promised > 0:
            self.stretch = max(_LEAST_STRETCH, (1 - found.ratio) / promised)
        return _Try(units, latency, abs(found.ratio / self._keep - 1))

    def _unreachable(self, least: float) -> BudgetError:
        return BudgetError(
            f"keep={self._keep} of latency cannot be reached",
            why=f"with fewer units a share of {least:.3f} is the least that is predicted",
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
