"""What becomes of the tensors of a model: what is kept, its name, its factors, and what the config says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune.errors import PlanError, some
from fxprune.graph.program import Program
from fxprune.plan import Kept, Plan, check_plan
from fxprune.remark import Remark
from fxprune.shards.config import changed_fields
from fxprune.write_back import refuse_edits, written
from fxprune.write_back.fold import Folds
from fxprune.write_back.layers import Rewritten

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """What becomes of the tensors of a model.

    Attributes:
        kept: of tensors that are cut; see `Plan.kept`.
        lengths: before; see `Plan.lengths`.
        needed: tensors that a checkpoint must have, each with all its names.
        shapes: of all tensors that the model saves, before; None where nothing is known but the plan.
        after: their shapes after, as the smaller model has them; empty where there is none.
        folds: factors that tensors take.
        config: fields of the model's config that change -> their new values; None where there is no model.
        names: where layers leave, the name of each tensor that stays -> its name after; otherwise None.
        remarks: on numbers of the model that nothing decides.
    """

    kept: Kept
    lengths: Mapping[str, Mapping[int, int]]
    needed: Sequence[Sequence[str]]
    shapes: Mapping[str, Shape] | None = None
    after: Mapping[str, Shape] = field(default_factory=dict)
    folds: Folds = field(default_factory=Folds)
    config: Mapping[str, Any] | None = None
    names: Mapping[str, str] | None = None
    remarks: tuple[Remark, ...] = ()


def wanted_of(plan: Plan | Rewritten, model: nn.Module | None, program: Program | None) -> Wanted:
    """What becomes of the tensors of the model, of the program or, without both, of whatever has the names of a plan.

    Raises:
        PlanError: the plan is for another model, or more has to be done than to select positions and nothing says how.
    """
    if not isinstance(plan, Plan):
        return _without_layers(plan, model)
    if model is not None:
        return _of_model(plan, model, program)
    if program is not None:
        plan = check_plan(program, plan)
        state = _state(program.module)
        return Wanted(plan.kept, plan.lengths, _names(state), _shapes(state))
    _refuse(plan)
    shapes = None if plan.program is None else _shapes(_state(plan.program.module))
    return Wanted(plan.kept, plan.lengths, _names(plan.kept), shapes)


def _of_model(plan: Plan, model: nn.Module, program: Program | None) -> Wanted:
    result = written(model, plan, program=program)
    if result.unscaled:
        raise PlanError(
            "the factors that the queries of attention take are not known",
            where=some(result.unscaled),
            why="heads get narrower, and a model on the meta device has no numbers to find out by what it scales them",
            do="keep the size of heads (ignore=, keep={...}), or pass the model with its weights",
        )
    before, after = _state(model), _state(result.model)
    return Wanted(
        plan.kept,
        plan.lengths,
        _names(before),
        _shapes(before),
        _shapes(after),
        result.folds,
        changed_fields(getattr(model, "config", None), getattr(result.model, "config", None)),
        remarks=result.remarks,
    )


def _without_layers(result: Rewritten, model: nn.Module | None) -> Wanted:
    if model is None:
        raise PlanError(
            "deleted layers need the model that they were deleted from",
            why="its class says how the tensors of the layers that stay are then called",
            do="pass it, on the meta device or with numbers: model=",
        )
    found = written(model, result)
    before, after = _state(model), _state(found.model)
    names = {old: new for new, old in found.names.items() if new in after}
    return Wanted(
        {},
        {},
        _names({name: t for name, t in before.items() if name in names}),
        _shapes(before),
        {old: tuple(after[new].shape) for old, new in names.items()},
        config=changed_fields(getattr(model, "config", None), getattr(found.model, "config", None)),
        names=names,
        remarks=found.remarks,
    )


def _refuse(plan: Plan) -> None:
    try:
        refuse_edits(plan)
    except PlanError as error:
        raise PlanError(
            "the plan needs more than to select positions",
            where=error.where,
            why=error.why,
            do="pass the model that the plan was made of, on the meta device (model=, --model): its weights then take "
            "the factor; or its program (program=), for weights of the graph of fp.shrink",
        ) from error


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a module saves, by name."""
    state = module.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(t.shape) for name, t in state.items()}


def _names(tensors: Mapping[str, object]) -> list[list[str]]:
    """The names of each object."""
    found: dict[int, list[str]] = {}
    for name, each in tensors.items():
        found.setdefault(id(each), []).append(name)
    return list(found.values())
