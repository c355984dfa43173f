"""Applies a plan to the original nn.Module: slices its tensors and sets the numbers that repeat sizes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from fxprune.analysis.cache import solved
from fxprune.capture import capture
from fxprune.errors import PlanError
from fxprune.graph.program import Program, named_tensors
from fxprune.plan import Edit, Plan, check_plan
from fxprune.process.state import plain_modes
from fxprune.remark import Remark
from fxprune.shrink import apply_plan
from fxprune.shrink.tensors import slice_tensors
from fxprune.stand_in import forget, runs_alike
from fxprune.verify.check import on_meta
from fxprune.write_back.agreement import Agreement
from fxprune.write_back.attempt import Trial
from fxprune.write_back.cuts import find_cuts
from fxprune.write_back.fold import Folds, find_folds
from fxprune.write_back.layers import Deletion, Rewritten, without_layers
from fxprune.write_back.likeness import sizes_of
from fxprune.write_back.numbers import Numbers
from fxprune.write_back.original import Original
from fxprune.write_back.rebuild import Builder
from fxprune.write_back.refuse import check_names, refuse_edits
from fxprune.write_back.scale import Scales
from fxprune.write_back.sizes import Cut, new_attributes
from fxprune.write_back.slots import Slot
from fxprune.write_back.twin import all_or_nothing, twin_of

M = TypeVar("M", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)


@dataclass(frozen=True, eq=False)
class Written(Generic[M_co]):
    """What `written` returns.

    Attributes:
        model: the smaller model.
        remarks: on numbers of the model and its config that nothing decides.
        folds: factors that weights of norms, or of the queries of attention, have in them: `folds.of(values)` turns
            tensors of the smaller program, by name, into those of the model.
        names: where layers have left, the name of each tensor -> its name before; otherwise empty.
        unscaled: where the model has no numbers, nodes of attention whose heads got narrower: which weights take the
            factor that its scale then lacks can only be found out with numbers.
    """

    model: M_co
    remarks: tuple[Remark, ...]
    folds: Folds
    names: Mapping[str, str] = field(default_factory=dict)
    unscaled: tuple[str, ...] = ()


def write_back(
    model: M,
    plan: Plan | Rewritten | Program,
    *,
    inplace: bool = False,
    program: Program | None = None,
    verify: bool = True,
) -> M:
    """Returns the model without everything that a plan or a pipeline removes; its class and forward code do not change.

    Deleted layers leave their `ModuleList` or `Sequential`, and those that follow are renumbered. Where the rest of a
    layer stays, a module that passes its input on or returns zeros (`fxprune.write_back.Removed`) takes the place
    of the deleted part. Batch norms that a pipeline has folded and layers that it has fused stay as they were.

    Numbers that repeat sizes follow: in attributes of modules, in tuples, lists and dicts there, and in the model's
    config. Which do is found out by trying. A config that cannot say the new sizes is left, with a warning;
    `fxprune.write_back.written` returns this and further remarks.

    Args:
        model: the model that was captured.
        plan: a plan for its program; or the result of `fp.run` that deleted layers; or a program that was made of
            it so, as by training with a `Shrinker`, whose weights the model then takes.
        inplace: change `model` itself; it is restored if this fails. Parameters that a plan cuts become new objects.
        program: the captured program, for a plan that was read from a file, or for a program; the model is captured
            anew where that is needed.
        verify: run the model's forward and compare its outputs with those of the smaller program. Without this,
            only numbers of torch's own modules and of registered classes follow. Without layers it is always run.

    Raises:
        PlanError: the plan is for another model, the model's own forward cannot express it, there is no
            program to verify with, a deleted layer cannot leave the class, or a pipeline has changed more.
    """
    result = written(model, plan, inplace=inplace, program=program, verify=verify)
    for remark in result.remarks:
        if remark.kind == "missed":
            warnings.warn(str(remark), UserWarning, stacklevel=2)
    return result.model


@plain_modes()
def written(
    model: M,
    plan: Plan | Rewritten | Program,
    *,
    inplace: bool = False,
    program: Program | None = None,
    verify: bool = True,
    config_only: bool = False,
    config: Mapping[Slot, Any] | None = None,
    original: Original | None = None,
    learning: bool = False,
) -> Written[M]:
    """Does what `write_back` does, and returns remarks with the model.

    Args:
        model: see `write_back`.
        plan: see `write_back`.
        inplace: see `write_back`.
        program: see `write_back`.
        verify: see `write_back`.
        config_only: refuse a plan whose sizes the model's config cannot say, where its class is built from one.
        config: numbers of the config of the smaller model, where they are known.
        original: the model, where more is known about it already.
        learning: the plan is only tried: numbers on which nothing depends are not decided.

    Raises:
        PlanError: as `write_back`.
    """
    if not isinstance(plan, Plan):
        found = without_layers(model, _deletion(model, plan, program), inplace=inplace)
        return Written(found.model, found.remarks, Folds(), found.names)
    if program is not None:
        plan = check_plan(program, plan)
    if verify and plan.program is None:
        raise PlanError(
            "there is no program to verify the model with",
            why="the plan was read from a file",
            do="pass program=fp.capture(model, args), or verify=False",
        )
    check_names(model, plan)
    small, scales = None, None
    folds, folded = Folds(), list[Edit]()
    if plan.program is not None:
        small = apply_plan(plan.program, solved(plan.program), plan)
        folds, folded = find_folds(model, plan, small)
    if verify and small is not None:
        scales = Scales(plan, small)
        folded += scales.edits
    refuse_edits(plan, folded)
    if original is None and verify and plan.program is not None:
        original = Original(model, plan.program, Builder.of(model))
    target = model if inplace else twin_of(model)
    alike = nullcontext() if inplace else runs_alike()  # code may reach the model itself by name
    with all_or_nothing(target), alike:
        before = sizes_of(target)
        _slice(target, plan)
        unfolded = folds.apply(target)
        remarks = []
        if original is not None and scales is not None and small is not None:
            agreement = Agreement(small, {**named_tensors(target), **unfolded}, folds, scales)
            trial = Trial(target, small, agreement, None if inplace else original)
            numbers = Numbers(plan, trial, original.builder, folds, before)
            remarks = (
                numbers.follow(config)
                if config
                else numbers.settle(config_only=config_only, learning=learning)
            )
            taken = agreement.taken(target)
            taken.apply(target)
            folds = Folds((*folds, *taken))
    unscaled: tuple[str, ...] = ()
    if scales is not None and small is not None and (on_meta(target) or on_meta(small.module)):
        unscaled = scales.nodes
    return Written(target, tuple(remarks), folds, unscaled=unscaled)


def write_tensors(model: M, plan: Plan, *, inplace: bool) -> M:
    """Slices tensors and sets the attributes of which a table is kept; the model is restored if this fails."""
    check_names(model, plan)
    target = model if inplace else twin_of(model)
    with all_or_nothing(target):
        _slice(target, plan)
    return target


def _deletion(model: nn.Module, changed: Rewritten | Program, program: Program | None) -> Deletion:
    """What was captured, and what has become of it."""
    if not isinstance(changed, Program):
        return Deletion.of(changed)
    if program is None:
        program = capture(model, changed.args, changed.kwargs, dynamic_batch=changed.free_batch)
        program.train(changed.training)
    return Deletion(program, changed)


def _slice(model: nn.Module, plan: Plan) -> None:
    forget(model)
    cuts = find_cuts(model, plan)
    slice_tensors(model, plan.kept)
    for cut in cuts:
        _set_attributes(cut)


def _set_attributes(cut: Cut) -> None:
    for name, value in new_attributes(cut).items():
        if getattr(cut.module, name) != value:
            setattr(cut.module, name, value)
