"""Rules for operators that select or write positions by index values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxprune.algebra.units import Axes, Label, Units, drop, frozen
from fxprune.rules.table import present, rule


@rule("aten.embedding")
def embedding(u: Units, weight: Axes, indices: Axes, *_: Any) -> Axes:
    """Embedding: index values select the rows, which stay; the columns pass through."""
    u.freeze(weight[0], why="rows are selected by index values")
    return *indices, weight[1]


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(u: Units, weight: Axes, *others: Any) -> list[Axes]:
    """Embedding bag: index values select the rows, which stay, and rows of a bag are summed.

    Of the further outputs, one holds the positions of the largest entries.
    """
    u.freeze(
        weight[0],
        *(a for x in present(*others) for a in x),
        why="rows are selected by index values",
    )
    rest = [(Label(s[0]), weight[1]) if len(s) == 2 else frozen(s) for s in u.out[1:]]
    return [(Label(u.out[0][0]), weight[1]), *rest]


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(u: Units, x: Axes, indices: Sequence[Axes | None]) -> Axes:
    """Advanced indexing: indexed axes stay and are replaced by the axes of the indices; the others pass through."""
    u.freeze(
        *(a for ix in present(*indices) for a in ix), why="positions are selected by index values"
    )
    named = _named_axes(x, indices, len(u.out))
    u.freeze(*(x[i] for i in named), why="positions are selected by index values")
    rest = drop(x, named)
    lead = _lead(named)
    middle = len(u.out) - len(rest)
    return *rest[:lead], *frozen(u.out[lead : lead + middle]), *rest[lead:]


def _named_axes(x: Axes, indices: Sequence[Axes | None], rank: int) -> list[int]:
    """Returns the axes that the indices apply to; a mask covers as many axes as the rank of the result implies."""
    wide = max(len(ix) for ix in present(*indices))
    masks = rank != wide + len(x) - len(present(*indices))
    named: list[int] = []
    place = 0
    for ix in indices:
        count = len(ix) if masks and ix is not None else 1
        named += range(place, place + count) if ix is not None else ()
        place += count
    return named


def _lead(named: list[int]) -> int:
    """Returns where the axes of the indices go: in place of adjacent indexed axes, otherwise to the front."""
    return named[0] if named[-1] - named[0] == len(named) - 1 else 0


@rule("aten.index_select")
def index_select(u: Units, x: Axes, dim: int, indices: Axes) -> Axes:
    """Index values select positions of one axis, which stays; the others pass through."""
    dim %= len(x)
    u.freeze(x[dim], *indices, why="positions are selected by index values")
    return *x[:dim], Label(u.out[dim]), *x[dim + 1 :]


@rule("aten.gather")
def gather(u: Units, x: Axes, dim: int, indices: Axes, **_: Any) -> Axes:
    """Index values select positions of one axis, which stays; the others are coupled with those of the indices."""
    return _beside(u, x, dim, indices)


def _beside(u: Units, x: Axes, dim: int, indices: Axes) -> Axes:
    """Freezes `dim` of both and couples the other axes, in which `indices` may be shorter."""
    if not x:
        return indices
    u.freeze(x[dim], indices[dim], why="positions are selected by index values")
    return tuple(u.unify(b, a) for a, b in zip(x, indices, strict=True))


@rule(
    "aten.take",
    "aten.take_along_dim",
    "aten.masked_select",
    "aten.nonzero",
    "aten.bincount",
    "aten.histc",
    "aten.bucketize",
    "aten.searchsorted",
    "aten.unique_dim",
    "aten._unique2",
    "aten.one_hot",
)
def by_data(u: Units, *operands: Any, **_: Any) -> Any:
    """An output whose shape or positions depend on values: nothing can be removed."""
    u.freeze(
        *(a for x in present(*operands) for a in x), why="the result's positions depend on values"
    )
    many = bool(u.out) and isinstance(u.out[0], list)
    return [frozen(s) for s in u.out] if many else frozen(u.out)


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(
    u: Units, x: Axes, dim: int, indices: Axes, source: Any = None, *_: Any, **__: Any
) -> Axes:
    """Index values select positions of one axis, which stays; the others are coupled across all operands."""
    out = _beside(u, x, dim, indices)
    for part in present(source):
        _beside(u, part, dim, out)
    return x


@rule("aten.index_add", "aten.index_copy")
def index_add(u: Units, x: Axes, dim: int, indices: Axes, source: Axes, **_: Any) -> Axes:
    """Index values select positions of one axis, which stays; the others pass through."""
    u.freeze(*indices, why="positions are selected by index values")
    return tuple(a for a, _ in zip(x, _beside(u, x, dim, source), strict=True))


@rule("aten.index_fill")
def index_fill(u: Units, x: Axes, dim: int, indices: Axes, *_: Any) -> Axes:
    """Index values select positions of one axis, which stays; the others pass through."""
    u.freeze(x[dim], *indices, why="positions are selected by index values")
    return x


@rule("aten.index_put", "aten._index_put_impl")
def index_put(u: Units, x: Axes, indices: Sequence[Axes | None], values: Axes, *_: Any) -> Axes:
    """Indexed axes stay; the axes behind them are coupled with the last axes of the values."""
    u.freeze(
        *(a for ix in present(*indices) for a in ix), why="positions are selected by index values"
    )
    if any(len(ix) > 1 for ix in present(*indices)):  # it may be a mask over several axes
        u.freeze(*x, *values, why="positions are selected by index values")
    named = [i for i, ix in enumerate(indices) if ix is not None]
    lead = _lead(named)
    rest = drop(x, named)[lead:]
    split = max(0, len(values) - len(rest))
    u.freeze(
        *x[:lead],
        *(x[i] for i in named),
        *values[:split],
        why="positions are selected by index values",
    )
    u.broadcast(rest, values[split:])
    return x


@rule("aten.masked_scatter", "aten.diagonal_scatter")
def write_by_data(u: Units, x: Axes, *operands: Any, **_: Any) -> Axes:
    """Positions are overwritten one by one: nothing can be removed."""
    u.freeze(
        *x,
        *(a for o in present(*operands) for a in o),
        why="positions are selected by index values",
    )
    return x


@rule("aten.select_scatter")
def select_scatter(u: Units, x: Axes, source: Axes, dim: int, _: Any) -> Axes:
    """One position of an axis, which stays, is overwritten."""
    dim %= len(x)
    u.freeze(x[dim], why="one position is selected by its number")
    for a, b in zip(drop(x, [dim]), source, strict=True):
        u.unify(a, b)
    return x


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(u: Units, x: Axes, grid: Axes, *_: Any) -> Axes:
    """The grid selects pixels, which stay; channels pass through."""
    u.freeze(*x[2:], *grid[1:], why="pixels are selected by the values of the grid")
    return u.unify(x[0], grid[0]), x[1], *frozen(u.out[2:])


@rule("aten.affine_grid_generator")
def affine_grid(u: Units, theta: Axes, *_: Any) -> Axes:
    """Coordinates are computed from position numbers: nothing can be removed."""
    u.freeze(*theta)
    return frozen(u.out)
