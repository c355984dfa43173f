"""Writes what a training has removed and learnt back to a model of the user's own class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.analysis.cache import solved
from fxprune.calibration.batches import call
from fxprune.errors import FxpruneError
from fxprune.graph.program import Program, named_tensors
from fxprune.plan import Plan, plan_removal, units_of_kept
from fxprune.remark import Remark
from fxprune.training.correspondence import compose
from fxprune.training.shrinker import Change
from fxprune.verify import TOLERANCE, relative_error
from fxprune.write_back import written

CODE = "train-smaller.not-written-back"


def one_plan(start: Program, changes: Iterable[Change]) -> Plan:
    """The plan for the program at the start that removes all units which the changes removed one after the other.

    Raises:
        PlanError: no plan for that program removes exactly these.
    """
    tensors = start.tensors()
    kept = {
        name: cut
        for name, cut in compose(p for c in changes for p in c.plans).items()
        if name in tensors
    }
    axes = solved(start)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    return plan_removal(start, axes, units_of_kept(axes, kept, shapes))


def into_own_class(
    model: nn.Module,
    start: Program,
    changes: list[Change],
    trained: Program,
    program: Program,
    inputs: Any,
) -> tuple[nn.Module | None, list[Remark]]:
    """A model of the same class, in eval mode, that computes what the program does, where its forward can.

    Args:
        model: the model that was captured; it is used up.
        start: the program that was captured.
        changes: what removed units from it, in order.
        trained: the network at the end of training.
        program: the network for use, made of it.
        inputs: on which the two are held against each other.

    Returns:
        The model, or None and a remark that says why there is none.
    """
    gone = sorted(dict(start.module.named_parameters()).keys() - trained.tensors().keys())
    if gone:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in gone))
        return _not(start, f"layers were deleted ({_some(layers)}), and its forward calls them")
    try:
        smaller = model.eval()
        values: Mapping[str, torch.Tensor] = trained.tensors()
        plan = one_plan(start.eval(), changes)
        if plan.removed.size:
            result = written(smaller, plan)
            smaller = result.model
            values = result.folds.of(trained.tensors())
        _load(smaller, values)
    except FxpruneError as error:
        return _not(start, str(error))
    with torch.no_grad():
        found, wanted = (pytree.tree_leaves(call(m, inputs)) for m in (smaller, program.module))
    off = max((relative_error(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)
    allowed = max((TOLERANCE.get(x.dtype, 0.0) for x in wanted if torch.is_tensor(x)), default=0.0)
    if not off <= allowed:
        why = (
            f"its forward differs from the program by {off:.1e}: operators were removed or replaced"
        )
        return _not(start, why)
    return smaller, []


@torch.no_grad()
def _load(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Gives a model the values of tensors with the same names."""
    for name, tensor in named_tensors(model).items():
        if name in values:
            tensor.copy_(values[name])


def _not(start: Program, why: str) -> tuple[None, list[Remark]]:
    what = "the result cannot be written back to the model's own class"
    return None, [Remark("missed", CODE, start.name, what, why, "use the program: result.program")]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
