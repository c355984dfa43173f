"""What a model refuses: plans for another model, and edits that no forward makes."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from fxprune.errors import PlanError
from fxprune.graph.program import module_path, named_tensors
from fxprune.plan import Edit, Plan, Rescale, SetArgument


def refuse_edits(plan: Plan, folded: Collection[Edit] = ()) -> None:
    """Refuses plans whose graph edits no forward of a model would make.

    Args:
        plan: for its program.
        folded: edits that modules of the model take over.

    Raises:
        PlanError: an average is rescaled, or attention keeps the scale of a larger head.
    """
    for edit in plan.edits:
        if edit in folded:
            continue
        if isinstance(edit, Rescale):
            why = f"an average over removed positions must be multiplied by {edit.numerator}/{edit.denominator}"
            raise inexpressible(plan, edit.node, why)
        if isinstance(edit, SetArgument) and edit.argument == "scale":
            why = f"attention must keep the scale {edit.new:g} of its original head size"
            raise inexpressible(plan, edit.node, why)


def inexpressible(plan: Plan, node: str, why: str) -> PlanError:
    """The error to raise for an edit of the graph that no forward makes."""
    paths = paths_of(plan)
    return PlanError(
        "the model's own forward cannot express this plan",
        where=f"node {node}" + (f" in {paths[node]}" if paths.get(node) else ""),
        why=why,
        do="use the smaller program (fp.shrink), or exclude the modules before this one with ignore=...",
    )


def paths_of(plan: Plan) -> dict[str, str]:
    """Returns the module path of each node of the plan's program."""
    return {} if plan.program is None else {n.name: module_path(n) for n in plan.program.nodes}


def check_names(model: nn.Module, plan: Plan) -> None:
    """Checks that the model has the tensors of the plan, at their original sizes.

    Raises:
        PlanError: the plan is for another model.
    """
    tensors = named_tensors(model)
    for name, cut in plan.kept.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise PlanError(
                f"the model has no parameter or buffer {name}",
                where=type(model).__name__,
                why="the plan is for another model, or it cuts a constant in the model's forward code",
                do="use the smaller program (fp.shrink)",
            )
        for axis, positions in cut.items():
            last = int(positions.max(initial=0))
            if axis >= tensor.dim() or last >= tensor.shape[axis]:
                raise PlanError(
                    "the plan is for another model",
                    where=f"{name}, axis {axis}",
                    why=f"the plan keeps position {last}, but the shape is {tuple(tensor.shape)}",
                    do="pass the model that was captured, before anything was removed",
                )
