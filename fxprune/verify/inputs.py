"""Random inputs for a verification: those of the example's sizes, and others where axes are free."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from math import gcd, lcm
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.graph.evaluate import flat_inputs
from fxprune.graph.free_axes import Conditions
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes, symbolic_axes
from fxprune.torch_private import multiple

Tensor = torch.Tensor


class Batch(NamedTuple):
    """The inputs of one run.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        size: length of axis 0; None where the inputs have no common batch axis.
        plain: the same where axis 0 alone is of another length, if other axes are too: a network may refuse lengths
            that its graph does not show, such as more positions than it has embeddings for.
    """

    args: tuple[Any, ...]
    kwargs: Any
    size: int | None
    plain: Batch | None = None


def batches_of(program: Program, seed: int) -> Iterator[Batch]:
    """Random inputs like the example's; where axes are free, of other lengths too, with more rows in the batch."""
    rng = torch.Generator().manual_seed(seed)
    axes = _free(program)
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    rows = [x for x in leaves if isinstance(x, Tensor) and x.dim()]
    free = [x for x in rows if 0 in axes.get(id(x), {})]
    size = max((len(x) for x in (free or rows)), default=1)
    yield _batch(program, rng, {}, size)
    if not axes:
        return
    conditions = Conditions(program.graph)
    batch = {name for of in axes.values() for axis, (name, _) in of.items() if axis == 0}
    step = _more_rows(program, batch, conditions.example) if batch else 1
    more = {name: conditions.example[name] + step for name in batch}
    if not conditions.hold(more):
        more = {k: v for k, v in conditions.another({}, {}).items() if k in batch}
    every = conditions.another(more, {})
    new = max(
        (len(x) + more[axes[id(x)][0][0]] - conditions.example[axes[id(x)][0][0]] for x in free),
        default=size,
    )
    plain = None
    if every != more:
        plain = _batch(program, rng, _lengths(axes, more), new) if more else None
    yield _batch(program, rng, _lengths(axes, every), new)._replace(plain=plain)


Lengths = dict[int, dict[int, int]]


def _batch(program: Program, rng: torch.Generator, lengths: Lengths, size: int) -> Batch:
    args, kwargs = pytree.tree_map(
        lambda x: _random_like(x, rng, lengths.get(id(x), {})),
        (program.args, dict(program.kwargs)),
    )
    return Batch(args, kwargs, size)


def _free(program: Program) -> dict[int, dict[int, tuple[str, int]]]:
    """The free axes of the example tensors, by identity, as names of sizes with their factors."""
    inputs = flat_inputs(program.module, program.args, program.kwargs)
    found: dict[int, dict[int, tuple[str, int]]] = {}
    for x, node in zip(inputs, program.graph.find_nodes(op="placeholder"), strict=False):
        value = node.meta.get("val")
        for axis in symbolic_axes(value) if isinstance(x, Tensor) else ():
            if (known := multiple(value.shape[axis])) is not None:
                found.setdefault(id(x), {})[axis] = known
    return found


def _lengths(axes: dict[int, dict[int, tuple[str, int]]], sizes: dict[str, int]) -> Lengths:
    return {
        key: {axis: sizes[name] * k for axis, (name, k) in of.items() if name in sizes}
        for key, of in axes.items()
    }


def _more_rows(program: Program, batch: set[str], example: Mapping[str, int]) -> int:
    """By how many rows a batch may grow: what the graph divides must stay divisible."""

    def of(n: int) -> Sizes:
        return Sizes(lambda _, symbol: n if symbol.name in batch else example.get(symbol.name, 1))

    one, two = of(1), of(2)
    steps = [1]
    for node in program.graph.find_nodes(op="call_function", target=operator.floordiv):
        length, parts = node.args
        value = length.meta.get("val") if isinstance(length, fx.Node) else None
        if isinstance(value, torch.SymInt) and isinstance(parts, int):
            steps.append(parts // gcd(parts, two.number(value) - one.number(value)))
    return lcm(*steps)


def _random_like(value: Any, rng: torch.Generator, lengths: dict[int, int]) -> Any:
    """A tensor like another one, longer ones with its entries again; noise is added to those that are repeated."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        value = torch.randn(value.shape, generator=rng, dtype=torch.float64).to(value)
    if not lengths:
        return value
    for axis, n in lengths.items():
        places = torch.arange(n, device=value.device) % value.shape[axis]
        value = value.index_select(axis, places)
    if not value.is_floating_point():
        return value
    return value + torch.randn(value.shape, generator=rng, dtype=torch.float64).to(value)
