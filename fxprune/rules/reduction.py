"""Operators that reduce axes, and those that run along one."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Label, Units, drop, frozen
from fxprune.rules.table import rule


@rule("aten.sum", "aten.nansum")
def sum_(u: Units, x: Axes, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    """A silenced position adds nothing: exact as it is."""
    return u.reduce(x, _dims(x, dim), keepdim)


@rule("aten.mean")
def mean(u: Units, x: Axes, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    """Exact once the engine multiplies by kept / original."""
    dims = _dims(x, dim)
    u.rescale(*(x[d] for d in dims))
    return u.reduce(x, dims, keepdim)


@rule("aten.linalg_vector_norm", "aten.norm")
def norm(u: Units, x: Axes, order: Any = 2, dim: Any = None, keepdim: bool = False, *_: Any, **__: Any) -> Axes:
    """A zero adds nothing to a norm of positive order."""
    dims = _dims(x, dim)
    if isinstance(order, int | float) and order <= 0:
        u.freeze(*(x[d] for d in dims))
    return u.reduce(x, dims, keepdim)


@rule(
    "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.argmax", "aten.argmin", "aten.prod", "aten.logsumexp", "aten.any",
    "aten.all", "aten.median", "aten.mode", "aten.kthvalue", "aten.count_nonzero",
)
def extremum(u: Units, x: Axes, *args: Any, **kwargs: Any) -> Axes | list[Axes]:
    """A silenced position could win: the reduced axes stay. Two tensors are compared element by element."""
    if args and isinstance(args[0], tuple):
        return u.broadcast(x, args[0])
    dim = args[0] if args else kwargs.get("dim")
    dims = _dims(x, dim)
    u.freeze(*(x[d] for d in dims), why="a removed position could have been the result")
    many = bool(u.out) and not isinstance(u.out[0], int)
    shape = u.out[0] if many else u.out
    out = drop(x, dims, keepdim=len(shape) == len(x))
    return [out for _ in u.out] if many else out


@rule(
    "aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten.cumsum", "aten.cumprod", "aten.logcumsumexp",
    "aten.softmin",
)
def along(u: Units, x: Axes, dim: int, *_: Any, **__: Any) -> Axes:
    """Every position of the axis has its share in every other."""
    if x:
        u.freeze(x[dim], why="every position of this axis has a share in every other")
    return x


@rule("aten.cummax", "aten.cummin", "aten.sort.default", "aten.msort")
def ordered(u: Units, x: Axes, dim: int = -1, *_: Any) -> list[Axes]:
    """The order of positions is data."""
    if x:
        u.freeze(x[dim], why="the order of positions is data")
    return [x, x]


@rule("aten.sort.stable")
def sort_stable(u: Units, x: Axes, *, dim: int = -1, **_: Any) -> list[Axes]:
    """The order of positions is data."""
    return ordered(u, x, dim)


@rule("aten.argsort")
def argsort(u: Units, x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """The order of positions is data."""
    u.freeze(*x, why="the order of positions is data")
    return frozen([len(a) for a in x])


@rule("aten.topk")
def topk(u: Units, x: Axes, k: Any, dim: int = -1, *_: Any) -> list[Axes]:
    """Which positions remain is data."""
    u.freeze(x[dim], why="which positions remain is data")
    dim %= len(x)
    out = (*x[:dim], Label(u.out[0][dim]), *x[dim + 1 :])
    return [out, out]


@rule("aten.local_response_norm")
def local_response_norm(u: Units, x: Axes, *_: Any) -> Axes:
    """A window slides over the channels."""
    u.freeze(x[1], why="a window slides over this axis")
    return x


@rule("aten.cosine_similarity")
def cosine_similarity(u: Units, a: Axes, b: Axes, dim: int = 1, *_: Any) -> Axes:
    """A sum of products over `dim`, and two norms."""
    return u.reduce(u.broadcast(a, b), [dim])


def _dims(x: Axes, dim: Any) -> list[int]:
    """The reduced axes; none named means all."""
    if dim is None or dim == []:
        return list(range(len(x)))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [d % len(x) for d in dims] if x else []
