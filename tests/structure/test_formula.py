"""Formulas over gates against tables of truth."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.structure.formula import (
    ALWAYS,
    NEVER,
    Chances,
    Formula,
    assume,
    both,
    either,
    gate,
    support,
)

GATES = 5
Bits = tuple[bool, ...]


@st.composite
def formulas(draw: st.DrawFn) -> tuple[Formula, frozenset[Bits]]:
    """A formula, built up at random, and where it is true."""
    every = list(product((False, True), repeat=GATES))
    known = [(ALWAYS, frozenset(every)), (NEVER, frozenset[Bits]())]
    known += [(gate(i), frozenset(b for b in every if b[i])) for i in range(GATES)]
    for _ in range(draw(st.integers(1, 10))):
        parts = draw(st.lists(st.sampled_from(known[1:]), min_size=2, max_size=3))
        names, tables = [f for f, _ in parts], [t for _, t in parts]
        if draw(st.booleans()):
            known.append((either(names), frozenset().union(*tables)))
        else:
            known.append((both(*names), tables[0].intersection(*tables[1:])))
    return known[-1]


@settings(max_examples=150, deadline=None)
@given(formulas(), st.integers(0, GATES - 1), st.booleans())
def test_chances_are_those_of_the_table(
    case: tuple[Formula, frozenset[Bits]], number: int, is_open: bool
) -> None:
    formula, table = case
    p = torch.linspace(0.15, 0.85, GATES, dtype=torch.float64)
    known = assume(formula, number, is_open=is_open)
    assert number not in support(known)
    both_ways = Chances([formula, known], GATES)
    sure = p.clone()
    sure[number] = float(is_open)
    for chances, at in ((both_ways(p)[0], p), (both_ways(sure)[1], sure), (both_ways(p)[1], sure)):
        weights = [
            torch.stack([q if b else 1 - q for q, b in zip(at, bits, strict=True)]).prod()
            for bits in table
        ]
        expected = sum(weights, torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(chances, expected, rtol=1e-12, atol=1e-14)


def test_a_shortcut_makes_the_rest_of_no_matter() -> None:
    assert either([gate(1), ALWAYS]) == ALWAYS
    assert either([both(gate(1), gate(2)), gate(1)]) == gate(1)
    assert both(gate(1), either([gate(1), gate(2)])) == gate(1)
    assert either([]) == NEVER
    assert both(gate(1), NEVER) == NEVER


def test_a_chain_of_parallel_branches_stays_as_long_as_the_chain() -> None:
    formula = ALWAYS
    for i in range(0, 400, 4):
        formula = either(both(gate(i + j), formula) for j in range(4))
    assert len(formula) == 100
    (chance,) = Chances([formula], 400)(torch.full((400,), 0.5, dtype=torch.float64))
    assert chance.item() == pytest.approx((1 - 0.5**4) ** 100)
