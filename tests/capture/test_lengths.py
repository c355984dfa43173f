"""Tests of fxprune.capture.lengths against the operators themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor
from torch.nn import functional as F

from fxprune.capture.formula import Formula, Space
from fxprune.capture.lengths import find_length, result_shapes
from fxprune.capture.second import _named

aten = torch.ops.aten
H, W = "x.shape[2]", "x.shape[3]"
POINTS = [{H: h, W: w} for h, w in ((16, 16), (33, 50), (17, 41), (24, 36), (61, 19))]


def weight(*sizes: int) -> Tensor:
    return torch.empty(*sizes, device="meta")


CALLS: dict[str, tuple[Any, Callable[[Any, Any], tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    "a convolution": (aten.conv2d.default, lambda h, w: ((weight(4, 3, 3, 3), None), {})),
    "strides": (
        aten.conv2d.default,
        lambda h, w: ((weight(4, 3, 5, 3), None, [2, 3], [2, 0], [1, 2]), {}),
    ),
    "one stride for all": (
        aten.conv2d.default,
        lambda h, w: ((weight(4, 3, 3, 3), None, [2], [1]), {}),
    ),
    "same": (aten.conv2d.padding, lambda h, w: ((weight(4, 3, 3, 3), None, [1, 1], "same"), {})),
    "valid": (aten.conv2d.padding, lambda h, w: ((weight(4, 3, 3, 3), None, [2, 2], "valid"), {})),
    "transposed": (
        aten.conv_transpose2d.input,
        lambda h, w: ((weight(3, 4, 3, 2), None, [2, 3], [1, 0], [1, 0]), {}),
    ),
    "the general one": (
        aten.convolution.default,
        lambda h, w: ((weight(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1), {}),
    ),
    "the general one, transposed": (
        aten.convolution.default,
        lambda h, w: ((weight(3, 4, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1), {}),
    ),
    "a maximum": (aten.max_pool2d.default, lambda h, w: (([3, 3], [2, 2], [1, 1]), {})),
    "windows without a stride": (aten.avg_pool2d.default, lambda h, w: (([3, 3],), {})),
    "cut off windows": (
        aten.max_pool2d.default,
        lambda h, w: (([3, 3], [2, 2], [0, 0], [1, 1], True), {}),
    ),
    "resized to a length": (aten.upsample_nearest2d.vec, lambda h, w: (([h, w], None), {})),
    "scaled": (aten.upsample_bilinear2d.vec, lambda h, w: ((None, False, [2.0, 2.0]), {})),
    "scaled down": (aten.upsample_nearest2d.vec, lambda h, w: ((None, [0.5, 0.25]), {})),
    "a slice": (aten.slice.Tensor, lambda h, w: ((2, 3, 9), {})),
    "a slice from the end": (aten.slice.Tensor, lambda h, w: ((3, -7, (1 << 63) - 1), {})),
    "a slice without the end": (aten.slice.Tensor, lambda h, w: ((3, 1, -2), {})),
    "every second": (aten.slice.Tensor, lambda h, w: ((3, 1, (1 << 63) - 1, 2), {})),
    "narrowed": (aten.narrow.default, lambda h, w: ((3, 2, 5), {})),
    "padded": (aten.pad.default, lambda h, w: (([1, 2, 0, 3],), {})),
    "reflected": (aten.reflection_pad2d.default, lambda h, w: (([1, 2, 0, 3],), {})),
    "tiled": (aten.repeat.default, lambda h, w: (([2, 1, 3, 1, 2],), {})),
    "unfolded": (aten.unfold.default, lambda h, w: ((2, 4, 3), {})),
    "columns": (aten.im2col.default, lambda h, w: (([3, 3], [1, 1], [1, 1], [2, 2]), {})),
    "shuffled": (aten.pixel_unshuffle.default, lambda h, w: ((2,), {})),
}


def even(name: str, n: int) -> int:
    return n // 2 * 2 if name == "shuffled" else n


@pytest.mark.parametrize("name", CALLS)
def test_a_rule_says_what_the_operator_returns(name: str) -> None:
    op, arguments = CALLS[name]
    points = [{k: even(name, n) for k, n in p.items()} for p in POINTS]
    space = Space(points)
    h, w = (space.symbol(n, sympy.Symbol(f"s{i}", positive=True)) for i, n in enumerate((H, W)))
    args, kwargs = arguments(h, w)
    shapes = [(2, 3, h, w), *(tuple(x.shape) for x in args if isinstance(x, Tensor))]
    results = result_shapes(space, op._opname, shapes, _named(op, (None, *args), kwargs))
    assert results is not None
    found = results[0]
    for i, point in enumerate(points):
        if not all(c.holds_at(point) for c in space.conditions.values()):
            continue
        given, more = arguments(point[H], point[W])
        x = torch.empty(2, 3, point[H], point[W], device="meta")
        out = op(x, *given, **more)
        shape = [n.values[i] if isinstance(n, Formula) else n for n in found]
        assert shape == list((out[0] if isinstance(out, tuple) else out).shape)
    assert all(c.holds_at(points[0]) for c in space.conditions.values())


def test_a_concatenation_is_as_long_as_its_parts() -> None:
    space = Space(POINTS)
    h = space.symbol(H, sympy.Symbol("s0", positive=True))
    shapes = [(2, 3, h), (2, 3, 5), (2, 3, h)]
    results = result_shapes(space, "cat", shapes, {"dim": -1})
    assert results is not None
    n = results[0][2]
    assert n.values == tuple(2 * p[H] + 5 for p in POINTS)


def test_a_length_is_found_among_operands_and_products_of_neighbours() -> None:
    space = Space(POINTS)
    h, w = (space.symbol(n, sympy.Symbol(f"s{i}", positive=True)) for i, n in enumerate((H, W)))
    shape = (2, 3, h, w)
    assert find_length(space, (16, 33), [shape], []) is h
    assert find_length(space, (256, 33 * 50), [shape], []).values[2] == 17 * 41
    assert find_length(space, (48, 150), [shape], []).values[2] == 3 * 41
    assert find_length(space, (16, 34), [shape], []) is None


def test_an_operator_without_a_rule_has_none() -> None:
    assert result_shapes(Space(POINTS), "relu", [(2, 3)], {}) is None
    assert F.relu(torch.zeros(1)) == 0
