"""Writes the layers back that the result of a pipeline no longer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from fxprune.errors import PlanError
from fxprune.graph.editor import Editor
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program, named_tensors
from fxprune.verify import compare_functions
from fxprune.verify.check import on_meta
from fxprune.write_back.layers.gone import fewer, gone_branches
from fxprune.write_back.layers.write import LayerWriter, WithoutLayers
from fxprune.write_back.layers.zeros import with_zeros

Tensor = torch.Tensor
M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Rewritten(Protocol):
    """What passes have made of a captured network, as the result of `fp.run`."""

    @property
    def original(self) -> Program: ...

    @property
    def program(self) -> Program: ...

    @property
    def plans(self) -> Sequence[Any]: ...

    @property
    def zeros(self) -> Sequence[str]: ...

    @property
    def steps(self) -> Sequence[Any]: ...


@dataclass(frozen=True, eq=False)
class Deletion:
    """What a network was, and what has become of it.

    Attributes:
        original: the captured network.
        program: what has become of it.
        zeros: the names of nodes of the captured network that are known to be 0; empty where none are known.
        changing: the passes that may have changed the function.
        narrower: whether units were removed too.
    """

    original: Program
    program: Program
    zeros: tuple[str, ...] = ()
    changing: tuple[str, ...] = ()
    narrower: bool = False

    @classmethod
    def of(cls, result: Rewritten) -> Deletion:
        """That of the result of a pipeline."""
        changing = tuple(s.text for s in result.steps if s.changed and not s.checks)
        narrower = any(len(plan.removed) for plan in result.plans)
        return cls(result.original, result.program, tuple(result.zeros), changing, narrower)


def without_layers(model: M, deletion: Deletion, *, inplace: bool) -> WithoutLayers[M]:
    """The model without the layers that were deleted, with the weights of the program that was made of it.

    Args:
        model: the model that was captured.
        deletion: what became of it.
        inplace: change the model itself; it is restored if this fails.

    Raises:
        PlanError: it is another model, a layer cannot leave the class, or more than layers has changed.
    """
    _check_model(model, deletion)
    zeros, weights = _explained(model, deletion)
    found = LayerWriter(model, deletion.original, zeros).write(inplace=inplace)
    with torch.no_grad():
        for name, tensor in named_tensors(found.model).items():
            if (new := weights.get(found.names.get(name, name))) is not None:
                tensor.copy_(new)
    return found


def _explained(model: nn.Module, deletion: Deletion) -> tuple[list[str], Mapping[str, Tensor]]:
    """The nodes whose zeros make of the captured network what became of it, and the weights that it learned.

    Raises:
        PlanError: no zeros do.
    """
    original, program = deletion.original, deletion.program
    nodes = {n.name for n in original.nodes}
    known = list(deletion.zeros) if nodes.issuperset(deletion.zeros) else []
    guesses = [*([known] if known else ()), *fewer(gone_branches(original, program))]
    if on_meta(program.module) or on_meta(model):
        return guesses[0], {}
    error = 0.0
    held = named_tensors(model)
    for weights in ({}, _learned(original, program, held)):
        for zeros in guesses:
            silent = _with_tensors(with_zeros(original, zeros).program, {**held, **weights})
            check = compare_functions(silent, program)
            if check.ok:
                return zeros, weights
            error = error or check.max_relative_error
    raise PlanError(
        "more than layers has changed, and the class cannot express it",
        where=model_name(model),
        why=f"without the layers that were deleted it differs from the program by {error:.1e}"
        + (f"; {', '.join(deletion.changing)} may have changed more" if deletion.changing else ""),
        do="use the program of the result, or run a pipeline that only deletes, folds and fuses",
    )


def model_name(model: nn.Module) -> str:
    """The class of a model, for messages."""
    return type(model).__name__


def _learned(original: Program, program: Program, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the program that are others than those of the model, by name."""
    old = original.tensors()
    return {
        name: x
        for name, x in program.tensors().items()
        if name in old and x.shape == old[name].shape and x is not held.get(name)
    }


def _with_tensors(program: Program, tensors: Mapping[str, Tensor]) -> Program:
    editor = Editor(program)
    for name, old in program.tensors().items():
        if (new := tensors.get(name)) is not None and new is not old:
            editor.set_tensor(name, new)
    return editor.finish()


def _check_model(model: nn.Module, deletion: Deletion) -> None:
    if deletion.narrower:
        raise PlanError(
            "units were removed in the same run",
            why="layers are written back first, then a plan",
            do="run the deletions alone, smaller = fp.write_back(model, result), and prune `smaller`",
        )
    held, original = named_tensors(model), deletion.original
    for name, tensor in original.tensors().items():
        own = not is_inside_leaf(original.module, name)
        missing = isinstance(tensor, nn.Parameter) and name not in held
        if own and (missing or (name in held and held[name].shape != tensor.shape)):
            raise PlanError(
                "the result is of another model",
                where=name,
                why="it is no tensor of the model, or has another shape there",
                do="pass the model that was captured",
            )
