"""Operators that reduce axes, and those that run along one."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Label, Units, drop
from fxprune.rules.table import rule


def reduced_axes(x: Axes, dim: Any) -> list[int]:
    """The numbers of the axes that `dim` names; none named means all."""
    if dim is None or dim == []:
        return list(range(len(x)))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [d % len(x) for d in dims] if x else []


@rule("aten.sum", "aten.nansum")
def sum_(u: Units, x: Axes, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    """A silenced position adds nothing: exact as it is."""
    return u.reduce(x, reduced_axes(x, dim), keepdim)


@rule("aten.mean")
def mean(u: Units, x: Axes, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    """Exact once the engine multiplies by kept / original."""
    dims = reduced_axes(x, dim)
    u.rescale(*(x[d] for d in dims))
    return u.reduce(x, dims, keepdim)


@rule("aten.linalg_vector_norm", "aten.norm")
def norm(
    u: Units, x: Axes, order: Any = 2, dim: Any = None, keepdim: bool = False, *_: Any, **__: Any
) -> Axes:
    """A zero adds nothing to a norm, but for the least of all magnitudes."""
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
    """A silenced position could win: the reduced axes stay. Two tensors are compared element by element."""
    if isinstance(dim, tuple):
        return u.broadcast(x, dim)
    dims = reduced_axes(x, dim)
    u.freeze(*(x[d] for d in dims), why="a removed position could have been the result")
    many = bool(u.out) and not isinstance(u.out[0], int)
    shape = u.out[0] if many else u.out
    out = drop(x, dims, keepdim=len(shape) == len(x))
    return [out for _ in u.out] if many else out


@rule("aten.mode")
def mode(u: Units, x: Axes, dim: int = -1, *_: Any) -> Any:
    """The most frequent value: one axis stays."""
    return extremum(u, x, dim)


@rule("aten.kthvalue")
def kthvalue(u: Units, x: Axes, k: Any, dim: int = -1, *_: Any) -> Any:
    """The k-th smallest value: one axis stays."""
    return extremum(u, x, dim)


@rule("aten.any", "aten.count_nonzero")
def count(u: Units, x: Axes, dim: Any = None, keepdim: bool = False) -> Axes:
    """Zeros do not count."""
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
    """Every position of the axis has its share in every other."""
    u.freeze(*x[dim:][:1], why="every position of this axis has a share in every other")
    return x


@rule("aten.cumsum")
def cumsum(u: Units, x: Axes, dim: int, **_: Any) -> Axes:
    """A silenced position adds nothing to those behind it."""
    u.silence(*x[dim:][:1])
    return x


@rule("aten._fft_r2c", "aten._fft_c2c", "aten._fft_c2r")
def fourier(u: Units, x: Axes, dims: list[int], *_: Any) -> Axes:
    """Every position of the transformed axes has its share in every other."""
    turned = {d % len(x) for d in dims}
    u.freeze(*(x[d] for d in turned), why="every position of this axis has a share in every other")
    return tuple(Label(u.out[i]) if i in turned else a for i, a in enumerate(x))


@rule("aten.cummax", "aten.cummin", "aten.sort.default")
def ordered(u: Units, x: Axes, dim: int = -1, *_: Any) -> list[Axes]:
    """The order of positions is data."""
    u.freeze(*x[dim:][:1], why="the order of positions is data")
    return [x, x]


@rule("aten.sort.stable")
def sort_stable(u: Units, x: Axes, *, dim: int = -1, **_: Any) -> list[Axes]:
    """The order of positions is data."""
    return ordered(u, x, dim)


@rule("aten.argsort.default")
def argsort(u: Units, x: Axes, dim: int = -1, *_: Any) -> Axes:
    """The order of positions is data."""
    return ordered(u, x, dim)[0]


@rule("aten.argsort.stable")
def argsort_stable(u: Units, x: Axes, *, dim: int = -1, **_: Any) -> Axes:
    """The order of positions is data."""
    return ordered(u, x, dim)[0]


@rule("aten.msort")
def msort(u: Units, x: Axes) -> Axes:
    """The order of positions of the first axis is data."""
    return ordered(u, x, 0)[0]


@rule("aten.topk")
def topk(u: Units, x: Axes, k: Any, dim: int = -1, *_: Any) -> list[Axes]:
    """Which positions remain is data."""
    u.freeze(x[dim], why="which positions remain is data")
    dim %= len(x)
    out = (*x[:dim], Label(u.out[0][dim]), *x[dim + 1 :])
    return [out, out]


@rule("aten.cosine_similarity")
def cosine_similarity(u: Units, a: Axes, b: Axes, dim: int = 1, *_: Any) -> Axes:
    """A sum of products over `dim`, and two norms."""
    out = u.broadcast(a, b)
    dim %= len(out)
    u.silence(*(x[dim - len(out)] for x in (a, b) if len(x) >= len(out) - dim))
    return drop(out, [dim])
