"""Random inputs for a verification, in as many batch sizes as the program allows."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from math import gcd, lcm
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.graph.evaluate import flat_inputs
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes, symbolic_axes

Tensor = torch.Tensor


class Batch(NamedTuple):
    """The inputs of one run.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        size: length of axis 0; None where the inputs have no common batch axis.
    """

    args: tuple[Any, ...]
    kwargs: Any
    size: int | None


def batches_of(program: Program, seed: int) -> Iterator[Batch]:
    """Random inputs like the example's; where the batch is free, of more rows too, one if that can be."""
    rng = torch.Generator().manual_seed(seed)
    free = _with_free_batch(program)
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    size = max(
        (
            x.shape[0]
            for x in leaves
            if isinstance(x, Tensor) and x.dim() and (id(x) in free or not free)
        ),
        default=1,
    )
    for extra in (0, _more_rows(program)) if program.free_batch else (0,):
        args, kwargs = pytree.tree_map(
            lambda x, e=extra: _random_like(x, rng, e if id(x) in free else 0),
            (program.args, dict(program.kwargs)),
        )
        yield Batch(args, kwargs, size + extra)


def _more_rows(program: Program) -> int:
    """By how many rows a batch may grow: what the graph halves must stay even."""
    one, two = (Sizes(lambda *_, n=n: n) for n in (1, 2))
    steps = [1]
    for node in program.graph.find_nodes(op="call_function", target=operator.floordiv):
        length, parts = node.args
        value = length.meta.get("val") if isinstance(length, fx.Node) else None
        if isinstance(value, torch.SymInt) and isinstance(parts, int):
            steps.append(parts // gcd(parts, two.number(value) - one.number(value)))
    return lcm(*steps)


def _with_free_batch(program: Program) -> set[int]:
    """Which of the example tensors, by identity, have a first axis of free length."""
    inputs = flat_inputs(program.module, program.args, program.kwargs)
    places = (n for n in program.nodes if n.op == "placeholder")
    return {
        id(x) for x, n in zip(inputs, places, strict=False) if 0 in symbolic_axes(n.meta.get("val"))
    }


def _random_like(value: Any, rng: torch.Generator, extra: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        value = torch.randn(value.shape, generator=rng, dtype=torch.float64).to(value)
    if not extra:
        return value
    rows = torch.arange(len(value) + extra, device=value.device) % len(value)
    more = value.index_select(0, rows)
    if not value.is_floating_point():
        return more
    return more + torch.randn(more.shape, generator=rng, dtype=torch.float64).to(value)
