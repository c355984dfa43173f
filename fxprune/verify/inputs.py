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
AxisLengths = dict[int, dict[int, int]]
"""By the identity of an example tensor and the number of an axis."""


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


class Lengths(NamedTuple):
    """Lengths of the free sizes of a program, by name, at which it may be run.

    Attributes:
        first: those that differ from the example's in the first run.
        second: the same for the second run; None where nothing is free.
        plain: the same for a second run where the batch alone differs; None where that is all that differs anyway.
    """

    first: dict[str, int]
    second: dict[str, int] | None = None
    plain: dict[str, int] | None = None


def lengths_of(program: Program, *, few: bool = False) -> Lengths:
    """At which lengths of its free axes to run a program: those of the example, and others with more rows in the batch.

    Args:
        program: a captured network.
        few: whether to take as few rows as the graph holds for, two at least, in place of the example's.
    """
    axes = _free(program)
    if not axes:
        return Lengths({})
    conditions = Conditions(program.graph)
    batch = {name for of in axes.values() for axis, (name, _) in of.items() if axis == 0}
    step = _more_rows(program, batch, conditions.example) if batch else 1
    first = _fewest(conditions, batch, step) if few else {}
    more = {name: first.get(name, conditions.example[name]) + step for name in batch}
    if not conditions.hold(more):
        more = {k: v for k, v in conditions.another({}, {}).items() if k in batch}
    every = conditions.another(more, {})
    plain = (more or None) if every != more else None
    return Lengths(first, every, plain)


def batches_of(program: Program, seed: int, *, few: bool = False) -> Iterator[Batch]:
    """Random inputs like the example's; where axes are free, of other lengths too, with more rows in the batch.

    Args:
        program: a captured network.
        seed: of the inputs.
        few: see `lengths_of`.
    """
    rng = torch.Generator().manual_seed(seed)
    axes = _free(program)
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    rows = [x for x in leaves if isinstance(x, Tensor) and x.dim()]
    free = [x for x in rows if 0 in axes.get(id(x), {})]

    def batch(lengths: Mapping[str, int]) -> Batch:
        named = _lengths(axes, lengths)
        size = max((named.get(id(x), {}).get(0, len(x)) for x in (free or rows)), default=1)
        return _batch(program, rng, named, size)

    lengths = lengths_of(program, few=few) if axes else Lengths({})
    usual = batch({}) if lengths.first else None
    yield batch(lengths.first)._replace(plain=usual)
    if lengths.second is None:
        return
    plain = None if lengths.plain is None else batch(lengths.plain)
    yield batch(lengths.second)._replace(plain=plain)


def _fewest(conditions: Conditions, batch: set[str], step: int) -> dict[str, int]:
    """The fewest rows, two at least, that the graph holds for; nothing where that is the example."""
    least = min((conditions.example[name] for name in batch), default=0)
    for fewer in range((least - 2) // step * step, 0, -step):
        rows = {name: conditions.example[name] - fewer for name in batch}
        if conditions.hold(rows):
            return rows
    return {}


def _batch(program: Program, rng: torch.Generator, lengths: AxisLengths, size: int) -> Batch:
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


def _lengths(axes: dict[int, dict[int, tuple[str, int]]], sizes: Mapping[str, int]) -> AxisLengths:
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
