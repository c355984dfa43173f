"""The library's verbs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from fxprune.axes import Axes
from fxprune.group import Groups, find_groups
from fxprune.plan import Plan, check_plan, plan_removal, units_of
from fxprune.program import Program
from fxprune.shrink import apply_plan
from fxprune.solve import solve
from fxprune.verify import Check, compare_programs

_solved: WeakKeyDictionary[Program, Axes] = WeakKeyDictionary()


def solved(program: Program) -> Axes:
    """The labels of a program, worked out once."""
    if program not in _solved:
        _solved[program] = solve(program)
    return _solved[program]


def groups(program: Program) -> Groups:
    """What may be removed: units by the parameter axes they cut; prints as a table."""
    return find_groups(solved(program))


def plan(program: Program, removed: Iterable[int] | Mapping[str, tuple[int, Iterable[int]]]) -> Plan:
    """The plan that removes units, or positions of parameter axes with all that is coupled to them.

    Args:
        program: a captured network.
        removed: units of `fp.groups(program)`, or {"layer1.0.conv1.weight": (axis, [positions])}.

    Raises:
        PlanError: see `fxprune.plan`.
    """
    axes = solved(program)
    units = units_of(axes, removed) if isinstance(removed, Mapping) else removed
    return plan_removal(program, axes, units)


def shrink(program: Program, plan: Plan) -> Program:
    """The smaller program of a plan; `program` stays as it is.

    Raises:
        PlanError: the plan is for another program, or was edited wrongly.
    """
    return apply_plan(program, solved(program), check_plan(program, plan, solved))


def verify(program: Program, plan: Plan, small: Program, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Check:
    """Holds a smaller program against the silenced original on random inputs."""
    return compare_programs(program, solved(program), plan, small, dtype=dtype, seed=seed)
