"""Holds two programs that should compute the same function against each other."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.graph.editor import Editor
from fxprune.graph.evaluate import Evaluator, type_in
from fxprune.graph.program import Program, describe
from fxprune.verify.check import TOLERANCE, Check, Run, compare_runs, require_numbers
from fxprune.verify.first_difference import NO_NODE, first_difference
from fxprune.verify.inputs import batches_of
from fxprune.verify.noise import outside_leaves

Tensor = torch.Tensor


def compare_functions(
    before: Program,
    after: Program,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    sizes: int = 2,
) -> Check:
    """Runs two programs of the same inputs and outputs on the same random inputs.

    Dropout is off; where the batch is free, two sizes are tried. Numbers that were worked out anew are rounded
    to the type in which they are stored, so the tolerance is that of this type.

    Args:
        before: the program as it was.
        after: the program that should compute the same.
        dtype: of both runs.
        seed: of the inputs and of random operators.
        sizes: how many sizes of a free batch to try, 1 or 2.

    Raises:
        VerifyError: the program is on the meta device and has no numbers to compare.
    """
    require_numbers(before)
    types = (dtype, *new_types(before, after))
    check = compare_runs(
        _running(before, dtype),
        _running(after, dtype),
        islice(batches_of(before, seed), sizes),
        dtype=dtype,
        against="the program before",
        tolerance=max(TOLERANCE[t] for t in types if t in TOLERANCE),
        seed=seed,
    )
    if check.ok:
        return check
    bad = first_difference(
        after.nodes,
        Evaluator(before, dtype),
        Evaluator(after, dtype),
        next(batches_of(before, seed)),
        _same_value,
        tolerance=check.tolerance,
        seed=seed,
    )
    return replace(check, first_bad_node=NO_NODE if bad is None else describe(bad))


def _running(program: Program, dtype: torch.dtype) -> Run:
    """Runs a program with a fresh evaluator, since a run writes to the buffers of its evaluator."""

    def run(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        return Evaluator(program, dtype).evaluate(args, kwargs)

    return run


def _same_value(node: fx.Node, value: Tensor) -> Tensor | None:
    """The value itself, but for a tensor of the program, which a rewrite may change under its name."""
    return None if node.op == "get_attr" else value


def new_types(before: Program, after: Program) -> set[torch.dtype]:
    """The floating-point types of the tensors that only the second program holds."""
    old = {id(t) for t in before.tensors().values()}
    new = [t for t in after.tensors().values() if id(t) not in old]
    return {t.dtype for t in new if t.is_floating_point()}


def in_double(
    program: Program,
    names: Container[str] | None = None,
    noise: Mapping[str, Tensor] | None = None,
) -> Program:
    """The program with its floating-point tensors, inputs and casts in float64, so that no rewrite of it rounds.

    Args:
        program: the program; it stays as it is.
        names: of the tensors to convert; None for all.
        noise: what to add to which of them.
    """
    editor, added = Editor(program), noise or {}
    for name, tensor in outside_leaves(program).items():
        if names is not None and name not in names:
            continue
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            double = tensor.detach().double()
            editor.set_tensor(name, double + added[name] if name in added else double)
    for node in editor.nodes:
        node.args = fx.node.map_aggregate(node.args, _double_type)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _double_type)
        if "val" in node.meta:  # of which a rewrite infers those of the nodes that it adds
            node.meta["val"] = pytree.tree_map_only(Tensor, _double, node.meta["val"])
    args, kwargs = pytree.tree_map_only(Tensor, _double, (program.args, dict(program.kwargs)))
    return replace(editor.finish(), args=args, kwargs=kwargs, remarks=())


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() and x.dtype != torch.float64 else x


def _double_type(value: Any) -> Any:
    return type_in(value, torch.float64)
