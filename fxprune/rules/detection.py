"""Rules for the operators of torchvision: regions of interest, and convolutions whose window is deformed."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Units, frozen
from fxprune.rules.contraction import convolution
from fxprune.rules.indexing import by_data
from fxprune.rules.table import rule

_WHY = "regions are cut out of this axis"


@rule("torchvision.roi_align")
def roi_align(u: Units, x: Axes, rois: Axes, *_: Any) -> Axes:
    """Averages of regions: `[n, c, h, w]` and rois `[k, 5]` give `[k, c, height, width]`."""
    return _regions(u, x, rois, u.out)


@rule("torchvision.roi_pool")
def roi_pool(u: Units, x: Axes, rois: Axes, *_: Any) -> list[Axes]:
    """Maxima of regions, and where in the image they are."""
    return [_regions(u, x, rois, shape) for shape in u.out]


def _regions(u: Units, x: Axes, rois: Axes, shape: Any) -> Axes:
    u.freeze(x[0], *x[2:], *rois, why=_WHY)
    return *frozen(shape[:1]), x[1], *frozen(shape[2:])


rule("torchvision.nms", "torchvision.ps_roi_align", "torchvision.ps_roi_pool")(by_data)


@rule("torchvision.deform_conv2d")
def deform_conv2d(
    u: Units,
    x: Axes,
    w: Axes,
    offset: Axes,
    mask: Axes,
    bias: Axes,
    *args: Any,
) -> Axes:
    """Convolution at places that `offset` and `mask` move and weigh, for each of some groups of input channels."""
    groups, offset_groups = args[6:8]
    u.freeze(x[0], *offset, *mask, why="a window slides over this axis")
    parts, _ = u.split(x[1], offset_groups, -1)
    u.freeze(parts, why="every group of channels has offsets of its own")
    return convolution(u, x, w, bias, None, None, None, False, None, groups)
