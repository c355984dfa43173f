"""Operators that address positions by data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxprune.algebra.units import Axes, Label, Units, frozen
from fxprune.rules.table import present, rule


@rule("aten.embedding")
def embedding(u: Units, weight: Axes, indices: Axes, *_: Any) -> Axes:
    """Rows are named by data."""
    u.freeze(weight[0], why="rows are named by data")
    return *indices, weight[1]


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(u: Units, weight: Axes, *others: Any) -> list[Axes]:
    """Rows are named by data; bags are summed."""
    u.freeze(weight[0], *(a for x in present(*others) for a in x), why="rows are named by data")
    return [(Label(u.out[0][0]), weight[1]), *(frozen(s) for s in u.out[1:])]


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(u: Units, x: Axes, indices: Sequence[Axes | None]) -> Axes:
    """Indexed axes stay; the others carry, the indices' own axes take their place."""
    named = [i for i, ix in enumerate(indices) if ix is not None]
    u.freeze(*(x[i] for i in named), why="positions are named by data")
    tensors = [ix for ix in indices if ix is not None]
    u.freeze(*(a for ix in tensors for a in ix), why="positions are named by data")
    rest = [a for i, a in enumerate(x) if i not in named]
    together = named == list(range(named[0], named[-1] + 1))
    lead = named[0] if together else 0
    middle = len(u.out) - len(rest)
    return *rest[:lead], *frozen(u.out[lead : lead + middle]), *rest[lead:]


@rule("aten.index_select")
def index_select(u: Units, x: Axes, dim: int, indices: Axes) -> Axes:
    """Positions of one axis are named by data."""
    dim %= len(x)
    u.freeze(x[dim], *indices, why="positions are named by data")
    return *x[:dim], Label(u.out[dim]), *x[dim + 1 :]


@rule("aten.gather")
def gather(u: Units, x: Axes, dim: int, indices: Axes, **_: Any) -> Axes:
    """Positions are data on every axis."""
    u.freeze(*x, *indices, why="positions are named by data")
    return frozen(u.out)


@rule("aten.take", "aten.take_along_dim", "aten.masked_select", "aten.nonzero", "aten.bincount", "aten.histc", "aten.bucketize",
      "aten.searchsorted", "aten.unique_dim", "aten._unique2", "aten.one_hot")
def by_data(u: Units, *operands: Any, **_: Any) -> Any:
    """What comes out depends on data: nothing may go."""
    u.freeze(*(a for x in present(*operands) for a in x), why="positions are named by data")
    many = bool(u.out) and isinstance(u.out[0], list)
    return [frozen(s) for s in u.out] if many else frozen(u.out)


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce", "aten.index_put", "aten._index_put_impl", "aten.index_add",
      "aten.index_copy", "aten.index_fill", "aten.masked_scatter", "aten.select_scatter", "aten.diagonal_scatter")
def write_by_data(u: Units, x: Axes, *operands: Any, **_: Any) -> Axes:
    """Positions are overwritten by data: nothing may go, except what is common to the end of an index_add."""
    flat = [o for op in operands for o in (op if isinstance(op, list) else [op])]
    u.freeze(*x, *(a for o in present(*flat) for a in o), why="positions are named by data")
    return x


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(u: Units, x: Axes, grid: Axes, *_: Any) -> Axes:
    """Pixels are named by data, channels carry."""
    u.freeze(*x[2:], *grid, why="pixels are named by data")
    return x[0], x[1], *frozen(u.out[2:])


@rule("aten.affine_grid_generator")
def affine_grid(u: Units, theta: Axes, *_: Any) -> Axes:
    """Coordinates are made by number."""
    u.freeze(*theta)
    return frozen(u.out)
