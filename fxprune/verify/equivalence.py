"""Holds two programs that should compute the same function against each other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import VerifyError
from fxprune.graph.editor import Editor
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program, describe
from fxprune.verify.silenced import TOLERANCE, Check, batches_of, constant, noise, relative_error

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

    Random operators are seeded alike, dropout is off; where the batch is free two sizes are tried. Numbers
    that were worked out anew are rounded to the type that they are stored in: the tolerance is that type's.

    Args:
        before: the program as it was.
        after: the program that should compute the same.
        dtype: of both runs.
        seed: of the inputs.
        sizes: how many sizes of a free batch to try, 1 or 2.

    Raises:
        VerifyError: a program on the meta device has no numbers to compare.
    """
    if any(t.is_meta for t in before.tensors().values()):
        raise VerifyError(
            "a program on the meta device has no weights to verify with", do="load weights first"
        )
    worst, where, batches = 0.0, "", []
    for args, kwargs, batch in islice(batches_of(before, seed), sizes):
        batches.append(batch)
        runs = [_run(Evaluator(p, dtype), args, kwargs, seed) for p in (before, after)]
        if len(runs[0]) != len(runs[1]):
            worst, where = float("inf"), f"{len(runs[1])} outputs in place of {len(runs[0])}"
            break
        for i, (a, b) in enumerate(zip(*runs, strict=True)):
            error = relative_error(b, a)
            if error > worst or not where:
                worst, where = error, f"output {i} (batch {batch}, error {error:.1e})"
    bound = max(TOLERANCE[t] for t in (dtype, *new_types(before, after)) if t in TOLERANCE)
    bad = "" if worst <= bound else _first_bad(before, after, dtype, bound, seed)
    return Check(
        ok=worst <= bound,
        max_relative_error=worst,
        dtype=str(dtype).removeprefix("torch."),
        tolerance=bound,
        worst_output=where,
        first_bad_node=bad,
        groups=(),
        batches=tuple(batches),
        against="the program before",
    )


def _run(runner: Evaluator, args: Any, kwargs: Any, seed: int) -> list[Any]:
    torch.manual_seed(seed)
    return runner.evaluate(args, kwargs)


def _first_bad(before: Program, after: Program, dtype: torch.dtype, bound: float, seed: int) -> str:
    """The first node of the same name, and of a value that should be equal, whose values differ."""
    records: list[dict[str, Any]] = [{}, {}]
    args, kwargs, _ = next(batches_of(before, seed))
    for program, record in zip((before, after), records, strict=True):
        runner = Evaluator(program, dtype)
        runner.observe = partial(_note, record)
        _run(runner, args, kwargs, seed)
    for node in after.nodes:
        a, b = records[0].get(node.name), records[1].get(node.name)
        if node.op == "output" or not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if relative_error(b, a) > bound:
            return describe(node)
    return "none but the outputs"


def _note(record: dict[str, Any], node: Any, value: Any) -> None:
    if node.op != "get_attr":
        record[node.name] = value


def new_types(before: Program, after: Program) -> set[torch.dtype]:
    """The floating-point types of the tensors that only the second program holds."""
    old = {id(t) for t in before.tensors().values()}
    new = [t for t in after.tensors().values() if id(t) not in old]
    return {t.dtype for t in new if t.is_floating_point()}


def in_double(program: Program) -> Program:
    """The program with its floating-point tensors and inputs in float64: no rewrite rounds what it works out."""
    editor = Editor(program)
    for name, tensor in program.tensors().items():
        inside = is_inside_leaf(program.module, name)
        if tensor.is_floating_point() and tensor.dtype != torch.float64 and not inside:
            editor.set_tensor(name, tensor.detach().double())
    args, kwargs = pytree.tree_map_only(
        Tensor,
        lambda x: x.double() if x.is_floating_point() else x,
        (program.args, dict(program.kwargs)),
    )
    return replace(editor.finish(), args=args, kwargs=kwargs, remarks=())


def randomised(program: Program, seed: int = 0) -> Program:
    """The program with noise on every tensor of one repeated value; itself where there is none.

    A fresh batch norm, a layer scale or a head of zeros would hide what a rewrite does wrong to it.
    Gates and other leaf modules stay as they are.
    """
    editor = Editor(program)
    changed = False
    for name, tensor in program.tensors().items():
        inside = is_inside_leaf(program.module, name)
        if inside or tensor.numel() < 2 or not tensor.is_floating_point() or not constant(tensor):
            continue
        noisy = tensor.detach() + noise(name, tensor, seed).to(tensor)
        changed = True
        same = isinstance(tensor, nn.Parameter)
        editor.set_tensor(name, nn.Parameter(noisy, tensor.requires_grad) if same else noisy)
    return replace(editor.finish(), remarks=()) if changed else program
