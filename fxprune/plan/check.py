"""Checks a plan against a program by building it again from what it keeps."""

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
    """The plan as recomputed for `program` from what it keeps.

    Raises:
        PlanError: the plan was made for another program, or says what no removal leads to.
    """
    if plan.program is program:
        return plan
    if plan.fingerprint != fingerprint(program):
        raise PlanError(
            "the plan was made for another program",
            where=f"program {program.name}",
            why=f"fingerprint {plan.fingerprint[:12]} is not {fingerprint(program)[:12]}",
            do="capture the model that the plan was made for, in the same way, or make a new plan",
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
                    why="what it keeps here does not follow from what it keeps elsewhere: it was edited",
                    do="change every axis that is coupled (fp.explain), or make a new plan with fp.plan",
                )
    if plan.edits != again.edits:
        raise PlanError(
            "the plan's edits do not follow from what it keeps",
            why="it was edited",
            do="make a new plan",
        )
