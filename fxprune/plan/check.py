"""Checks a plan against a program by recomputing it from the positions that it keeps."""

from __future__ import annotations

import numpy as np

from fxprune.analysis.cache import solved
from fxprune.errors import PlanError
from fxprune.graph.program import Program
from fxprune.plan.build import plan_removal
from fxprune.plan.fingerprint import fingerprint
from fxprune.plan.plan import Plan
from fxprune.plan.select import units_of_kept


def check_plan(program: Program, plan: Plan) -> Plan:
    """Returns the plan recomputed for `program` from the positions that it keeps.

    Raises:
        PlanError: the plan was made for another program, or does not follow from any removal.
    """
    if plan.program is program:
        return plan
    if plan.fingerprint != fingerprint(program):
        raise PlanError(
            "the plan was made for another program",
            where=f"program {program.name}",
            why=f"fingerprint {plan.fingerprint[:12]} is not {fingerprint(program)[:12]}",
            do="capture the same model in the same way as for the plan, or make a new plan",
        )
    axes = solved(program)
    tensors = program.tensors()
    units = units_of_kept(axes, plan.kept, {n: tuple(t.shape) for n, t in tensors.items()})
    again = plan_removal(program, axes, units)
    _compare(plan, again)
    return again


def _compare(plan: Plan, again: Plan) -> None:
    for name in sorted(set(plan.kept) | set(again.kept)):
        a, b = plan.kept.get(name, {}), again.kept.get(name, {})
        for axis in sorted(set(a) | set(b)):
            if axis not in a or axis not in b or not np.array_equal(a[axis], b[axis]):
                raise PlanError(
                    "the plan contradicts itself",
                    where=f"{name}, axis {axis}",
                    why="the positions kept here do not follow from those kept elsewhere: the plan was edited",
                    do="change every coupled axis (see fp.explain), or make a new plan with fp.plan",
                )
    if plan.edits != again.edits:
        raise PlanError(
            "the plan's graph edits do not follow from the positions that it keeps",
            why="the plan was edited",
            do="make a new plan with fp.plan",
        )
