"""Rules for operators that reduce an axis or scan along it."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Label, Units, drop
from fxprune.rules.table import rule


def reduced_axes(x: Axes, dim: Any) -> list[int]:
    """Returns the numbers of the axes that `dim` refers to; None or an empty list means all axes."""
    if dim is None or dim == []:
        return list(range(len(x)))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [d % len(x) for d in dims] if x else []


@rule("aten.sum", "aten.nansum")
def sum_(u: Units, x: Axes, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    """Sum: exact, because a silenced position adds nothing."""
    return u.reduce(x, reduced_axes(x, dim), keepdim)


@rule("aten.mean")
def mean(u: Units, x: Axes, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    """Mean: exact once shrinking multiplies the result by kept length / original length."""
    dims = reduced_axes(x, dim)
    u.rescale(*(x[d] for d in dims))
    return u.reduce(x, dims, keepdim)


@rule("aten.linalg_vector_norm", "aten.norm")
def norm(
    u: Units, x: Axes, order: Any = 2, dim: Any = None, keepdim: bool = False, *_: Any, **__: Any
) -> Axes:
    """Vector norm: a zero adds nothing, except to the norm that takes the smallest magnitude."""
    dims = reduced_axes(x, dim)
    if isinstance(order, int | float) and order < 0:
        u.freeze(*(x[d] for d in dims))
    return u.reduce(x, dims, keepdim)


@rule(
    "aten.amax",
    "aten.amin",
    "aten.max",
    "aten.min",
    "aten.argmax",
    "aten.argmin",
    "aten.prod",
    "aten.logsumexp",
    "aten.all",
    "aten.median",
)
def extremum(u: Units, x: Axes, dim: Any = None, *_: Any, **__: Any) -> Axes | list[Axes]:
    """Minimum or maximum: the reduced axes stay, because a silenced position could be the result.

    With two tensors, the comparison is elementwise.
    """
    if isinstance(dim, tuple):
        return u.broadcast(x, dim)
    dims = reduced_axes(x, dim)
    u.freeze(*(x[d] for d in dims), why="a removed position could have held the result")
    many = bool(u.out) and not isinstance(u.out[0], int)
    shape = u.out[0] if many else u.out
    out = drop(x, dims, keepdim=len(shape) == len(x))
    return [out for _ in u.out] if many else out


@rule("aten.mode")
def mode(u: Units, x: Axes, dim: int = -1, *_: Any) -> Any:
    """Most frequent value: the reduced axis stays."""
    return extremum(u, x, dim)


@rule("aten.kthvalue")
def kthvalue(u: Units, x: Axes, k: Any, dim: int = -1, *_: Any) -> Any:
    """k-th smallest value: the reduced axis stays."""
    return extremum(u, x, dim)


@rule("aten.any", "aten.count_nonzero")
def count(u: Units, x: Axes, dim: Any = None, keepdim: bool = False) -> Axes:
    """Number of nonzero elements: a silenced position does not count."""
    return u.reduce(x, reduced_axes(x, dim), keepdim)


@rule(
    "aten.softmax",
    "aten._softmax",
    "aten.log_softmax",
    "aten._log_softmax",
    "aten.cumprod",
    "aten.logcumsumexp",
)
def along(u: Units, x: Axes, dim: int, *_: Any, **__: Any) -> Axes:
    """Softmax and similar operators, in which every position of the axis affects every other: the axis stays."""
    u.freeze(*x[dim:][:1], why="every position of this axis affects every other")
    return x


@rule("aten.cumsum")
def cumsum(u: Units, x: Axes, dim: int, **_: Any) -> Axes:
    """Cumulative sum: a silenced position adds nothing to those behind it."""
    u.silence(*x[dim:][:1])
    return x


@rule("aten._fft_r2c", "aten._fft_c2c", "aten._fft_c2r")
def fourier(u: Units, x: Axes, dims: list[int], *_: Any) -> Axes:
    """Fourier transform: every position of the transformed axes affects every other."""
    turned = {d % len(x) for d in dims}
    u.freeze(*(x[d] for d in turned), why="every position of this axis affects every other")
    return tuple(Label(u.out[i]) if i in turned else a for i, a in enumerate(x))


@rule("aten.cummax", "aten.cummin", "aten.sort.default")
def ordered(u: Units, x: Axes, dim: int = -1, *_: Any) -> list[Axes]:
    """Sorting: the order of the positions depends on values."""
    u.freeze(*x[dim:][:1], why="the order of the positions depends on values")
    return [x, x]


@rule("aten.sort.stable")
def sort_stable(u: Units, x: Axes, *, dim: int = -1, **_: Any) -> list[Axes]:
    """Stable sorting: the order of the positions depends on values."""
    return ordered(u, x, dim)


@rule("aten.argsort.default")
def argsort(u: Units, x: Axes, dim: int = -1, *_: Any) -> Axes:
    """Sorting by index: the order of the positions depends on values."""
    return ordered(u, x, dim)[0]


@rule("aten.argsort.stable")
def argsort_stable(u: Units, x: Axes, *, dim: int = -1, **_: Any) -> Axes:
    """Stable sorting by index: the order of the positions depends on values."""
    return ordered(u, x, dim)[0]


@rule("aten.msort")
def msort(u: Units, x: Axes) -> Axes:
    """Sorting along the first axis: the order of its positions depends on values."""
    return ordered(u, x, 0)[0]


@rule("aten.topk")
def topk(u: Units, x: Axes, k: Any, dim: int = -1, *_: Any) -> list[Axes]:
    """Top-k: which positions remain depends on values."""
    u.freeze(x[dim], why="which positions remain depends on values")
    dim %= len(x)
    out = (*x[:dim], Label(u.out[0][dim]), *x[dim + 1 :])
    return [out, out]


@rule("aten.cosine_similarity")
def cosine_similarity(u: Units, a: Axes, b: Axes, dim: int = 1, *_: Any) -> Axes:
    """Cosine similarity: a sum of products over `dim`, divided by two norms."""
    out = u.broadcast(a, b)
    dim %= len(out)
    u.silence(*(x[dim - len(out)] for x in (a, b) if len(x) >= len(out) - dim))
    return drop(out, [dim])
