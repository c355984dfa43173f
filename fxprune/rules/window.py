"""Rules for pooling, resampling and sliding windows over the last axes."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Units, frozen
from fxprune.rules.table import rule

WHY = "a window slides over this axis"


@rule(
    "aten.max_pool1d",
    "aten.avg_pool1d",
    "aten.adaptive_avg_pool1d",
    "aten.upsample_nearest1d",
    "aten.upsample_linear1d",
    "aten._upsample_nearest_exact1d",
)
def over_one(u: Units, x: Axes, *_: Any, **__: Any) -> Axes:
    """Operates on the last axis, which stays; the others pass through."""
    return _trailing(u, x, 1)


@rule(
    "aten.max_pool2d",
    "aten.avg_pool2d",
    "aten.adaptive_avg_pool2d",
    "aten._adaptive_avg_pool2d",
    "aten.upsample_nearest2d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten._upsample_nearest_exact2d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_bicubic2d_aa",
)
def over_two(u: Units, x: Axes, *_: Any, **__: Any) -> Axes:
    """Operates on the last two axes, which stay; the others pass through."""
    return _trailing(u, x, 2)


@rule(
    "aten.max_pool3d",
    "aten.avg_pool3d",
    "aten.adaptive_avg_pool3d",
    "aten._adaptive_avg_pool3d",
    "aten.upsample_nearest3d",
    "aten.upsample_trilinear3d",
    "aten._upsample_nearest_exact3d",
)
def over_three(u: Units, x: Axes, *_: Any, **__: Any) -> Axes:
    """Operates on the last three axes, which stay; the others pass through."""
    return _trailing(u, x, 3)


@rule("aten.max_pool1d_with_indices", "aten.adaptive_max_pool1d")
def indexed_over_one(u: Units, x: Axes, *_: Any, **__: Any) -> list[Axes]:
    """Operates on the last axis and returns values and their positions in the window."""
    return [_trailing(u, x, 1, shape) for shape in u.out]


@rule("aten.max_pool2d_with_indices", "aten.adaptive_max_pool2d")
def indexed_over_two(u: Units, x: Axes, *_: Any, **__: Any) -> list[Axes]:
    """Operates on the last two axes and returns values and their positions in the window."""
    return [_trailing(u, x, 2, shape) for shape in u.out]


@rule("aten.max_pool3d_with_indices", "aten.adaptive_max_pool3d")
def indexed_over_three(u: Units, x: Axes, *_: Any, **__: Any) -> list[Axes]:
    """Operates on the last three axes and returns values and their positions in the window."""
    return [_trailing(u, x, 3, shape) for shape in u.out]


@rule("aten.fractional_max_pool2d")
def fractional(u: Units, x: Axes, size: Any, out: Any, samples: Axes) -> list[Axes]:
    """Fractional pooling: `samples`, `[b, c, 2]`, gives the windows of each channel."""
    u.freeze(samples[2], why=WHY)
    lead = u.broadcast(x[:-2], samples[:2])
    return [_trailing(u, lead + x[-2:], 2, shape) for shape in u.out]


@rule("aten.im2col")
def im2col(u: Units, x: Axes, kernel: list[int], *_: Any) -> Axes:
    """Extracts windows: `[b, c, h, w] -> [b, c*k*k, windows]`."""
    u.freeze(*x[-2:], why=WHY)
    return *x[:-3], x[-3].repeat(kernel[0] * kernel[1]), *frozen(u.out[-1:])


@rule("aten.col2im")
def col2im(u: Units, x: Axes, size: Any, kernel: list[int], *_: Any) -> Axes:
    """Sums windows back into an image: `[b, c*k*k, windows] -> [b, c, h, w]`."""
    channel, window = u.split(x[-2], -1, kernel[0] * kernel[1])
    u.freeze(window, x[-1], why=WHY)
    return *x[:-2], channel, *frozen(u.out[-2:])


@rule("aten.unfold")
def unfold(u: Units, x: Axes, dim: int, size: int, step: int) -> Axes:
    """Windows along `dim`, with a new last axis for the positions inside the window."""
    dim %= len(x)
    u.freeze(x[dim], why=WHY)
    return *x[:dim], *frozen(u.out[dim : dim + 1]), *x[dim + 1 :], *frozen([size])


def _trailing(u: Units, x: Axes, count: int, shape: Any = None) -> Axes:
    u.freeze(*x[-count:], why=WHY)
    return x[:-count] + frozen((shape or u.out)[-count:])
