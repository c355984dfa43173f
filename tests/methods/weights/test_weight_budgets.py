"""Tests of how many weights of each layer go."""

from __future__ import annotations

from math import exp, inf, isinf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fxprune_passes.methods.weights.weight_budgets import split_budget


@st.composite
def splits(draw: Any) -> tuple[int, list[float], list[int]]:
    size = draw(st.integers(1, 8))
    ratio = st.one_of(st.floats(0, 30), st.floats(0, 1e6), st.sampled_from([1.0, inf]))
    cap = st.one_of(st.integers(0, 20), st.integers(0, 10**12))
    ratios = draw(st.lists(ratio, min_size=size, max_size=size))
    caps = draw(st.lists(cap, min_size=size, max_size=size))
    return draw(st.one_of(st.integers(0, 100), st.integers(0, 10**12))), ratios, caps


@given(splits())
def test_parts_sum_to_the_budget_under_their_caps(case: tuple[int, list[float], list[int]]) -> None:
    budget, ratios, caps = case
    parts = split_budget(budget, ratios, caps)
    assert sum(parts) == min(budget, sum(caps))
    assert all(0 <= part <= cap for part, cap in zip(parts, caps, strict=True))
    first = [c - p for p, c, r in zip(parts, caps, ratios, strict=True) if isinf(r)]
    if any(p for p, r in zip(parts, ratios, strict=True) if not isinf(r)):
        assert not any(first)
    for p, cap, r in zip(parts, caps, ratios, strict=True):
        for q, cap2, r2 in zip(parts, caps, ratios, strict=True):
            if r >= r2 and p < cap and q < cap2:
                assert p >= q - 1


@given(st.lists(st.floats(0, 20), min_size=1, max_size=6), st.integers(0, 10**6))
def test_without_caps_it_is_the_softmax(ratios: list[float], budget: int) -> None:
    parts = split_budget(budget, ratios, [budget] * len(ratios))
    total = sum(map(exp, ratios))
    for part, ratio in zip(parts, ratios, strict=True):
        assert abs(part - budget * exp(ratio) / total) < 1 + 1e-6


def test_what_a_cap_leaves_is_spread_by_the_same_softmax() -> None:
    assert split_budget(100, [2.0, 1.0, 1.0], [10, 80, 80]) == [10, 45, 45]
    assert split_budget(100, [1e5, 1.0, 0.0], [10, 80, 80]) == [10, 66, 24]
    assert split_budget(100, [inf, inf, 5.0], [10, 30, 80]) == [10, 30, 60]
    assert split_budget(9, [inf, inf, 5.0], [10, 30, 80]) == [5, 4, 0]
    assert split_budget(5, [], []) == []
