"""Applies a plan to the original nn.Module: slices its tensors and adjusts the attributes that repeat sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fxprune.analysis.cache import solved
from fxprune.errors import PlanError
from fxprune.graph.program import Program
from fxprune.plan import Plan, check_plan
from fxprune.process.state import plain_modes
from fxprune.shrink import apply_plan
from fxprune.shrink.tensors import slice_tensors
from fxprune.verify import check_numbers, check_sizes
from fxprune.write_back.cuts import find_cuts
from fxprune.write_back.refuse import check_names, refuse_edits
from fxprune.write_back.sizes import Cut, new_attributes
from fxprune.write_back.twin import all_or_nothing, twin_of

M = TypeVar("M", bound=nn.Module)


@plain_modes()
def write_back(
    model: M,
    plan: Plan,
    *,
    inplace: bool = False,
    program: Program | None = None,
    verify: bool = True,
) -> M:
    """Returns the model without everything that the plan removes; its class and forward code do not change.

    Args:
        model: the model that was captured.
        plan: a plan for its program.
        inplace: change `model` itself; it is restored if this fails. Its parameters become new objects.
        program: the captured program, for a plan that was read from a file.
        verify: run the model's forward and compare its outputs with those of the smaller program.

    Raises:
        PlanError: the plan is for another model, the model's own forward cannot express it, or there is no
            program to verify with.
    """
    if program is not None:
        plan = check_plan(program, plan)
    if verify and plan.program is None:
        raise PlanError(
            "there is no program to verify the model with",
            why="the plan was read from a file",
            do="pass program=fp.capture(model, args), or verify=False",
        )
    refuse_edits(plan)
    return write_tensors(model, plan, inplace=inplace, check=_check if verify else None)


def _check(model: nn.Module, plan: Plan) -> None:
    program = plan.program
    assert program is not None
    check_sizes(model, program)
    check_numbers(model, apply_plan(program, solved(program), plan))


def write_tensors(
    model: M, plan: Plan, *, inplace: bool, check: Callable[[nn.Module, Plan], None] | None = None
) -> M:
    """Slices tensors and sets attributes; the model is restored if this or `check` fails."""
    check_names(model, plan)
    target = model if inplace else twin_of(model)
    with all_or_nothing(target):
        cuts = find_cuts(target, plan)
        slice_tensors(target, plan.kept)
        for cut in cuts:
            set_attributes(cut)
        if check is not None:
            check(target, plan)
    return target


def set_attributes(cut: Cut) -> None:
    """Sets the attributes of a module that a cut changes."""
    for name, value in new_attributes(cut).items():
        if getattr(cut.module, name) != value:
            setattr(cut.module, name, value)
