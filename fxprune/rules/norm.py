"""Normalisations: weights follow the normalised axis; statistics over labelled axes are marked."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Units, frozen
from fxprune.rules.table import present, rule


@rule("aten.batch_norm", "aten.instance_norm")
def batch_norm(u: Units, x: Axes, *parameters: Any) -> Axes:
    """Statistics are per channel: exact."""
    channel = u.unify(x[1], *(p[0] for p in present(*parameters)))
    u.freeze(*x[2:], why="statistics are taken over this axis")
    return x[0], channel, *x[2:]


@rule(
    "aten.native_batch_norm", "aten.cudnn_batch_norm", "aten._native_batch_norm_legit", "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_with_update", "aten._batch_norm_no_update",
)
def native_batch_norm(u: Units, x: Axes, *parameters: Any) -> list[Axes]:
    """The output and what the backward pass keeps, per channel or empty."""
    out = batch_norm(u, x, *parameters)
    return [out, *((out[1],) if list(s) == [len(out[1])] else frozen(s) for s in u.out[1:])]


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(u: Units, x: Axes, shape: list[int], weight: Axes | None = None, bias: Any = None, *_: Any) -> Axes:
    """Normalises over the last len(shape) axes."""
    k = len(shape)
    tail = x[-k:]
    for p in present(weight, bias):
        tail = u.broadcast(tail, p)
    u.renormalise(*x[-k:])
    u.spell("normalized_shape", *tail)
    return x[:-k] + tail


@rule("aten.native_layer_norm")
def native_layer_norm(u: Units, x: Axes, shape: list[int], *parameters: Any) -> list[Axes]:
    """The output, mean and reciprocal deviation."""
    out = layer_norm(u, x, shape, *parameters)
    stats = out[: -len(shape)] + frozen([1] * len(shape))
    return [out, stats, stats]


@rule("aten.group_norm")
def group_norm(u: Units, x: Axes, groups: int, weight: Axes | None = None, bias: Any = None, *_: Any) -> Axes:
    """Whole groups go exactly; parts of every group change its statistics."""
    u.freeze(*x[2:], why="statistics are taken over this axis")
    channel = u.unify(x[1], *(p[0] for p in present(weight, bias)))
    group, part = u.split(channel, groups, -1)
    u.renormalise(part)
    u.spell("num_groups", group, single=True)
    return x[0], channel, *x[2:]


@rule("aten.var", "aten.std")
def var(u: Units, x: Axes, dim: Any = None, *args: Any, **kwargs: Any) -> Axes:
    """Deviation over axes: their statistics change when positions go."""
    dims = _dims(x, dim)
    keepdim = bool(kwargs.get("keepdim") or (args and args[-1] is True))
    u.renormalise(*(x[d] for d in dims))
    return tuple(a for i, a in enumerate(x) if i not in dims) if not keepdim else _kept(x, dims)


@rule("aten.var_mean", "aten.std_mean")
def var_mean(u: Units, x: Axes, dim: Any = None, *args: Any, **kwargs: Any) -> list[Axes]:
    """Deviation and mean."""
    out = var(u, x, dim, *args, **kwargs)
    return [out, out]


def _dims(x: Axes, dim: Any) -> set[int]:
    if isinstance(dim, bool) or dim is None or dim == []:
        return set(range(len(x)))
    return {d % len(x) for d in ([dim] if isinstance(dim, int) else dim)}


def _kept(x: Axes, dims: set[int]) -> Axes:
    return tuple(frozen([1])[0] if i in dims else a for i, a in enumerate(x))
