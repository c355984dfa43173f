from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fxprune_passes.rewrite.fuse.compose import (
    chain_bias,
    chain_geometry,
    chain_objection,
    chain_weight,
    sum_geometry,
    sum_objection,
    sum_weight,
)
from fxprune_passes.rewrite.layers.affine_layer import Geometry

CALL: Any = (F.linear, F.conv1d, F.conv2d, F.conv3d)


def call(g: Geometry, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if not g.spatial:
        return F.linear(x, weight, bias)
    return CALL[g.spatial](x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


@st.composite
def geometries(draw: st.DrawFn, dims: int, inputs: int, outputs: int) -> Geometry:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups = draw(st.sampled_from((1, 2, 3, 6))) if dims else 1
    return Geometry(inputs, outputs, groups, each(1, 3), each(1, 2), each(0, 2), each(1, 2))


@st.composite
def pairs(draw: st.DrawFn, *, parallel: bool) -> tuple[Geometry, Geometry, torch.Tensor]:
    dims = draw(st.integers(0, 3))
    one = draw(geometries(dims, 6, 12))
    two = draw(geometries(dims, 6 if parallel else 12, 12 if parallel else 6))
    return one, two, torch.randn(2, 6, *(13,) * dims, dtype=torch.float64)


def aligned(one: Geometry, two: Geometry) -> Geometry:
    """The second with the stride of the first, and padded to the same size where that can be."""
    axes = []
    for k1, p1, d1, k2, d2 in zip(
        *(one.kernel, one.padding, one.dilation, two.kernel, two.dilation), strict=True
    ):
        total = 2 * p1 - (k1 - 1) * d1 + (k2 - 1) * d2
        axes.append((k1, p1, d1) if total % 2 or total < 0 else (k2, total // 2, d2))
    kernel, padding, dilation = zip(*axes, strict=True) if axes else ((), (), ())
    return replace(two, kernel=kernel, stride=one.stride, padding=padding, dilation=dilation)


def parameters(g: Geometry, biased: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(g.outputs, g.inputs // g.groups, *g.kernel, dtype=torch.float64)
    return weight, torch.randn(g.outputs, dtype=torch.float64) * biased


@settings(max_examples=200, deadline=None, database=None)
@given(pairs(parallel=False), st.booleans())
def test_a_chain_is_one_layer_exactly_where_nothing_objects(drawn: Any, biased: bool) -> None:
    one, two, x = drawn
    (w1, b1), (w2, b2) = parameters(one, biased), parameters(two)
    expected = call(two, call(one, x, w1, b1), w2, b2)
    whole = chain_geometry(one, two)
    found = call(whole, x, chain_weight(one, w1, two, w2), chain_bias(two, w2, b1, b2))
    assert found.shape == expected.shape
    if not chain_objection(one, two, biased):
        torch.testing.assert_close(found, expected)


def test_the_objections_to_a_chain_are_not_timid() -> None:
    wide = Geometry(6, 12, 1, (3,), (1,), (1,), (1,))
    single = Geometry(6, 12, 1, (1,), (2,), (1,), (1,))
    padded = Geometry(12, 6, 1, (3,), (1,), (1,), (1,))
    assert "where the first would compute a response" in chain_objection(wide, padded, False)
    assert "would add its bias" in chain_objection(single, padded, True)
    assert not chain_objection(single, padded, False)
    for one, biased in ((wide, False), (single, True)):
        x = torch.randn(2, 6, 13, dtype=torch.float64)
        (w1, b1), (w2, b2) = parameters(one, biased), parameters(padded)
        whole = chain_geometry(one, padded)
        found = call(whole, x, chain_weight(one, w1, padded, w2), chain_bias(padded, w2, b1, b2))
        assert not torch.allclose(found, call(padded, call(one, x, w1, b1), w2, b2))


@settings(max_examples=200, deadline=None, database=None)
@given(pairs(parallel=True))
def test_a_sum_is_one_layer_where_nothing_objects(drawn: Any) -> None:
    one, two, x = drawn
    two = aligned(one, two)
    assert not sum_objection(one, two)
    (w1, b1), (w2, b2) = parameters(one), parameters(two)
    weight = sum_weight(one, w1, two, w2)
    found = call(sum_geometry(one, two), x, weight, b1 + b2)
    torch.testing.assert_close(found, call(one, x, w1, b1) + call(two, x, w2, b2))
