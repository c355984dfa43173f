"""Decides what goes to meet a target: scores, candidates, their choice, and the plan of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Groups
from fxprune.cost import cost_of
from fxprune.errors import BudgetError, ScoreError
from fxprune.graph.program import Program, module_paths
from fxprune.importance import Importance, score_units
from fxprune.importance.table import FloatArray
from fxprune.plan.build import plan_removal
from fxprune.plan.choose import NO_LIMITS, Candidates, Target, choose, find_candidates
from fxprune.plan.globs import ignored_parameters
from fxprune.plan.limits import Limits
from fxprune.plan.plan import Plan
from fxprune.plan.reasons import frozen_reasons, reasons, refusals
from fxprune.plan.shares import find_shares
from fxprune.remark import Remark

Chooser = Callable[[Candidates, FloatArray], IntArray]
_NAMED = 5  # groups in one message


def decide(
    program: Program,
    axes: Axes,
    groups: Groups,
    target: Target,
    how: Importance,
    ignore: Sequence[str] = (),
    seed: int = 0,
    limits: Limits = NO_LIMITS,
    chooser: Chooser | None = None,
) -> tuple[Plan, list[Remark]]:
    """The plan that meets a target at the least score, and remarks on the groups that stay whole.

    Args:
        program: a captured network.
        axes: its labels.
        groups: of these.
        target: how much is to stay.
        how: how units are scored.
        ignore: globs of module paths whose own outputs stay as they are.
        seed: of random scores.
        limits: groups that stay whole, and groups that lose equal numbers of units.
        chooser: chooses among the candidates by their scores; None: `choose`, at the exact cost.

    Raises:
        OptionError: a glob that matches no module, or a share for what is no group.
        ScoreError: the criterion scores no unit; see `score_units`.
        BudgetError: nothing can be removed; the target cannot be reached, or is reached with nothing removed.
    """
    if not groups:
        raise BudgetError(
            "nothing can be removed",
            why=_listed(["every axis of every weight is frozen:", *frozen_reasons(axes)]),
            do="write a rule for each operator without one (docs/rules.md), or capture only the modules without them "
            "(fp.capture_partial)"
            if axes.remarks
            else "print a path to the reason with fp.explain(program, name, axis)",
        )
    names, paths = list(axes.params), module_paths(program)
    ignored = ignored_parameters(names, paths, ignore)
    shares = None
    if isinstance(target.keep, Mapping):
        shares = find_shares(groups, target.keep, names, paths, limits)
        limits = shares.limits(groups, limits)
    scores = score_units(program, axes, groups, how, seed, target.metric)
    if all(np.isnan(scores[g.units]).any() for g in groups):
        raise ScoreError(
            f"the criterion {how.criterion!r} scores nothing that can be removed",
            why=_listed(
                [
                    f"it says nothing of {', '.join(g.name for g in groups[:_NAMED])}",
                    *frozen_reasons(axes),
                ]
            ),
            do="choose another criterion, or change what keeps the other axes as they are",
        )
    candidates = find_candidates(axes, groups, scores, target, ignored, limits)
    if chooser is not None:
        units = chooser(candidates, scores)
    else:
        cost = cost_of(program, axes, target.metric)
        units = choose(axes, candidates, scores, target, cost, shares.of if shares else None)
    if not units.size:
        raise BudgetError(
            "nothing would be removed",
            why=_listed(["no candidate may lose a unit:", *reasons(axes, candidates, target)]),
            do="lower keep, multiple_of or at_least, or ignore less",
        )
    remarks = [*(shares.remarks if shares else ()), *refusals(candidates)]
    return plan_removal(program, axes, units), remarks


def _listed(lines: list[str]) -> str:
    return "\n        ".join(lines)
