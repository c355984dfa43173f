"""Rules for normalisation layers and statistics.

Weights are coupled with the normalised axis; axes whose statistics change are marked.
"""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Units, drop, frozen
from fxprune.rules.reduction import reduced_axes
from fxprune.rules.table import present, rule


@rule("aten.batch_norm")
def batch_norm(
    u: Units, x: Axes, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *_: Any
) -> Axes:
    """Batch norm: statistics are per channel; in train mode they are taken over all other axes."""
    if training:
        u.renormalise(x[0], *x[2:])
    return _per_channel(u, x, weight, bias, mean, variance)


@rule("aten.instance_norm")
def instance_norm(u: Units, x: Axes, *parameters: Any) -> Axes:
    """Instance norm: statistics are per sample and channel."""
    u.freeze(*x[2:], why="statistics are computed over this axis")
    return _per_channel(u, x, *parameters)


def _per_channel(u: Units, x: Axes, *parameters: Any) -> Axes:
    return x[0], u.unify(x[1], *(p[0] for p in present(*parameters))), *x[2:]


@rule(
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_no_training",
    "aten._native_batch_norm_legit.no_stats",
)
def native_batch_norm(u: Units, x: Axes, *parameters: Any) -> list[Axes]:
    """Returns the output and what the backward pass keeps, which is per channel or empty."""
    u.freeze(x[0], *x[2:], why="statistics are computed over this axis")
    out = _per_channel(u, x, *parameters)
    return [out, *((out[1],) if list(s) == [len(out[1])] else frozen(s) for s in u.out[1:])]


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(u: Units, x: Axes, shape: list[int], *parameters: Any) -> Axes:
    """Layer norm: normalises over the last `len(shape)` axes."""
    k = len(shape)
    tail = u.broadcast(x[-k:], *parameters)
    u.renormalise(*x[-k:])
    u.spell("normalized_shape", *tail)
    return x[:-k] + tail


@rule("aten.native_layer_norm")
def native_layer_norm(u: Units, x: Axes, shape: list[int], *parameters: Any) -> list[Axes]:
    """Returns the output, the mean and the reciprocal standard deviation."""
    out = layer_norm(u, x, shape, *parameters)
    stats = out[: -len(shape)] + frozen([1] * len(shape))
    return [out, stats, stats]


@rule("aten.group_norm")
def group_norm(
    u: Units, x: Axes, groups: int, weight: Axes | None = None, bias: Any = None, *_: Any
) -> Axes:
    """Group norm: removing whole groups is exact; removing channels of every group changes its statistics."""
    u.freeze(*x[2:], why="statistics are computed over this axis")
    channel = u.unify(x[1], *(p[0] for p in present(weight, bias)))
    group, part = u.split(channel, groups, -1)
    u.renormalise(part)
    u.spell("num_groups", group, single=True)
    return x[0], channel, *x[2:]


@rule("aten.var", "aten.std")
def var(u: Units, x: Axes, dim: Any = None, *args: Any, **kwargs: Any) -> Axes:
    """Variance or standard deviation: the statistics of an axis change when its positions are removed."""
    dims = reduced_axes(x, None if isinstance(dim, bool) else dim)
    keepdim = bool(kwargs.get("keepdim") or (args and args[-1]))
    u.renormalise(*(x[d] for d in dims))
    return drop(x, dims, keepdim=keepdim)


@rule("aten.var_mean", "aten.std_mean")
def var_mean(u: Units, x: Axes, dim: Any = None, *args: Any, **kwargs: Any) -> list[Axes]:
    """Variance or standard deviation, and mean."""
    out = var(u, x, dim, *args, **kwargs)
    return [out, out]
