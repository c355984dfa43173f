"""Composes two layers into one: two consecutive layers, or two layers of the same input that are summed.

With kernel k, stride s, padding p, dilation d, the first of a chain reads `u*s1 - p1 + j1*d1` for its output
`u`, the second `t*s2 - p2 + j2*d2` of those; put together, `t*s1*s2 - (p1 + p2*s1) + j1*d1 + j2*d2*s1`.
The sizes of the outputs are always equal: rounding down twice is rounding down once.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import gcd
from typing import Any

import torch

from fxprune_passes.rewrite.layers.affine_layer import Geometry

Tensor = torch.Tensor


def chain_objection(first: Geometry, second: Geometry, biased: bool) -> str:
    """Why two consecutive layers differ from one layer at the border; "" where they do not.

    The second layer pads with zeros, where a single layer would compute the response of the first to its own
    padding. Both agree only where the first has a kernel of size 1 and no bias.

    Args:
        first: the layer that reads the input.
        second: the layer that reads the output of the first.
        biased: whether the bias of the first is nonzero.
    """
    if not any(second.padding):
        return ""
    if any(p and k > 1 for p, k in zip(second.padding, first.kernel, strict=True)):
        return (
            "the second layer pads with zeros where the first would compute a response, so the result "
            "differs at the border"
        )
    if biased:
        return (
            "the second layer pads with zeros where the first would add its bias, so the result differs "
            "at the border"
        )
    return ""


def chain_geometry(first: Geometry, second: Geometry) -> Geometry:
    """The geometry of `second(first(x))`."""
    rows = [
        _chain_axis(*axis)
        for axis in zip(
            *(first.kernel, first.stride, first.padding, first.dilation),
            *(second.kernel, second.stride, second.padding, second.dilation),
            strict=True,
        )
    ]
    window = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Geometry(first.inputs, second.outputs, gcd(first.groups, second.groups), *window)


def _chain_axis(
    k1: int, s1: int, p1: int, d1: int, k2: int, s2: int, p2: int, d2: int
) -> tuple[int, int, int, int]:
    step = gcd(d1 if k1 > 1 else 0, d2 * s1 if k2 > 1 else 0) or 1
    reach = (k1 - 1) * d1 + (k2 - 1) * d2 * s1
    return reach // step + 1, s1 * s2, p1 + p2 * s1, step


def chain_weight(first: Geometry, w1: Tensor, second: Geometry, w2: Tensor) -> Tensor:
    """The weight of `second(first(x))`."""
    whole = chain_geometry(first, second)
    a = _regroup(w1, first.groups, whole.groups)
    b = _regroup(w2, second.groups, whole.groups)
    result = a.new_zeros(*b.shape[:2], a.shape[2], *whole.kernel)
    for place in product(*(range(k) for k in second.kernel)):
        starts = (
            j * d * s // step if j else 0
            for j, d, s, step in zip(
                place, second.dilation, first.stride, whole.dilation, strict=True
            )
        )
        part = result[_at(_places(starts, first, whole))]
        part += torch.einsum("gom,gmi...->goi...", b[_at(place)], a)
    return result.flatten(0, 1)


def chain_bias(second: Geometry, w2: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """The bias of `second(first(x))`: its own plus the response of the second layer to the bias of the first."""
    dense = _regroup(w2, second.groups, 1)[0]
    return b2 + dense.flatten(2).sum(2) @ b1 if second.spatial else b2 + dense @ b1


def sum_objection(a: Geometry, b: Geometry) -> str:
    """Why the sum of two layers of the same input is not one layer; "" where it is."""
    if a.stride != b.stride:
        return f"the strides {a.stride} and {b.stride} differ"
    if _slack(a) != _slack(b):
        return "the windows have different centres: the padding does not grow with the kernel"
    return ""


def _slack(g: Geometry) -> list[int]:
    """By how much the output of a layer with stride 1 is longer than its input, by axis."""
    return [2 * p - (k - 1) * d for k, p, d in zip(g.kernel, g.padding, g.dilation, strict=True)]


def sum_geometry(a: Geometry, b: Geometry) -> Geometry:
    """The geometry of `a(x) + b(x)`."""
    rows = []
    for ka, pa, da, kb, pb, db in zip(
        *(a.kernel, a.padding, a.dilation), *(b.kernel, b.padding, b.dilation), strict=True
    ):
        step = gcd(da if ka > 1 else 0, db if kb > 1 else 0, pa - pb) or 1
        padding = max(pa, pb)
        reach = max(padding - pa + (ka - 1) * da, padding - pb + (kb - 1) * db)
        rows.append((reach // step + 1, padding, step))
    kernel, padding_, dilation = zip(*rows, strict=True) if rows else ((), (), ())
    groups = gcd(a.groups, b.groups)
    return Geometry(a.inputs, a.outputs, groups, kernel, a.stride, padding_, dilation)


def sum_weight(a: Geometry, wa: Tensor, b: Geometry, wb: Tensor) -> Tensor:
    """The weight of `a(x) + b(x)`: each kernel at the place of its window in the common window."""
    whole = sum_geometry(a, b)
    each = whole.inputs // whole.groups
    result = wa.new_zeros(whole.groups, whole.outputs // whole.groups, each, *whole.kernel)
    for g, w in ((a, wa), (b, wb)):
        starts = (
            (p - own) // step
            for p, own, step in zip(whole.padding, g.padding, whole.dilation, strict=True)
        )
        part = result[_at(_places(starts, g, whole))]
        part += _regroup(w, g.groups, whole.groups)
    return result.flatten(0, 1)


def _at(place: Iterable[Any]) -> tuple[Any, ...]:
    """An index into the last axes of a tensor."""
    return (..., *place)


def _places(starts: Iterable[int], small: Geometry, whole: Geometry) -> list[slice]:
    """The positions of a smaller kernel within the composed kernel, by axis."""
    found = []
    for start, k, d, step in zip(starts, small.kernel, small.dilation, whole.dilation, strict=True):
        stride = d // step if k > 1 else 1
        found.append(slice(start, start + (k - 1) * stride + 1, stride))
    return found


def _regroup(weight: Tensor, groups: int, to: int) -> Tensor:
    """Rearranges `[out, in/groups, *k]` for fewer groups, `[to, out/to, in/to, *k]`, filled with zeros."""
    per = groups // to
    out, each, *kernel = weight.shape
    blocks = weight.reshape(to, per, out // groups, each, *kernel)
    result = weight.new_zeros(to, per, out // groups, per, each, *kernel)
    index = torch.arange(per)
    result[:, index, :, index] = blocks.transpose(0, 1)
    return result.reshape(to, out // to, per * each, *kernel)
