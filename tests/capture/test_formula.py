"""Tests of fxprune.capture.formula: numbers that know how they follow from sizes."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from fxprune.capture.formula import Condition, DifferentError, Formula, Length, Space

POINTS = [{"n": 12, "m": 5}, {"n": 113, "m": 216}, {"n": 40, "m": 7}, {"n": 9, "m": 31}]


def space_of() -> tuple[Space, Any, Any]:
    space = Space(POINTS)
    n, m = (space.symbol(k, sympy.Symbol(k, integer=True, positive=True)) for k in "nm")
    return space, space.length(n), space.length(m)


COMPUTED = {
    "sums": lambda n, m: 3 + n + m - 1 - n // 2,
    "products": lambda n, m: 2 * n * m,
    "remainders": lambda n, m: -n % 8 + (100 % m),
    "divmod": lambda n, m: divmod(n, 7)[0] + divmod(n, 7)[1],
    "powers": lambda n, m: n**2,
    "rounded down": lambda n, m: math.floor(n / 3),
    "rounded up": lambda n, m: math.ceil(n / 3) + math.ceil(m),
    "negative": lambda n, m: abs(-n),
    "a scale": lambda n, m: math.floor(n * 0.5),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_has_its_value_at_every_point(name: str) -> None:
    _space, n, m = space_of()
    found = COMPUTED[name](n, m)
    assert isinstance(found, Length)
    for i, point in enumerate(POINTS):
        plain = COMPUTED[name](point["n"], point["m"])
        assert found.formula.values[i] == found.formula.at(point) == plain
        expression = found.formula.expression.xreplace(
            {s: point[s.name] for s in found.formula.expression.free_symbols}
        )
        assert int(expression) == plain
    assert int(found) == found.formula.values[1]


def test_a_comparison_has_the_outcome_of_the_example_and_is_kept() -> None:
    space, n, _ = space_of()
    assert n < 50
    assert not n == 113  # noqa: SIM201  (the comparison is what is tested)
    assert n % 4 == 0
    kept = [str(c) for c in space.conditions.values()]
    broken = [str(c) for c in space.violated.values()]
    assert (kept, broken) == ([], ["n < 50", "n != 113", "n % 4 == 0"])


def test_what_always_holds_is_no_condition() -> None:
    space, n, _m = space_of()
    assert n == n
    assert n > 0
    assert bool(n)
    assert n + 1 != n
    assert not space.violated
    assert [str(c) for c in space.conditions.values()] in ([], ["(n + 1) != n"])


def test_a_number_that_is_equal_in_both_runs_is_required_to_be() -> None:
    space, n, _ = space_of()
    assert n // 500 == 0
    assert [str(c) for c in space.conditions.values()] == ["n // 500 == 0"]
    assert type(n - n) is int


def test_a_formula_is_found_by_its_values_in_both_runs() -> None:
    space, n, _m = space_of()
    half = n // 2
    assert space.find(6, 56) is half.formula
    assert space.find(6, 57) is None
    assert space.find_multiple(36, 339).values[2] == 120
    _ = (n + 1) // 2  # 6 and 57
    assert space.find(12, 113) is n.formula


def test_two_formulas_with_equal_values_have_to_be_equal() -> None:
    space = Space([{"n": 12}, {"n": 112}, {"n": 16}, {"n": 41}])
    n = space.length(space.symbol("n", sympy.Symbol("n", integer=True, positive=True)))
    down, up = n // 2, (n + 1) // 2
    assert down.formula is not up.formula
    assert space.find(6, 56) is down.formula
    assert [str(c) for c in space.conditions.values()] == ["n // 2 == (n + 1) // 2"]
    patient = Space(space.points, patient=True)
    n = patient.length(patient.symbol("n", sympy.Symbol("n", integer=True, positive=True)))
    _ = n // 2, (n + 1) // 2
    with pytest.raises(DifferentError) as caught:
        patient.find(6, 56)
    assert caught.value.by_chance


def test_a_plain_number_made_of_a_length_is_noted() -> None:
    space, n, _ = space_of()
    assert type(int(n)) is int
    assert space.lost == {"n"}
    assert n == 113, "the plain number is the length again"
    assert not space.violated
    assert math.sqrt(n * n) == 113


def test_a_length_that_outlives_its_run_is_a_plain_number() -> None:
    space, n, _ = space_of()
    space.close()
    assert n > 50 or n <= 50
    assert not space.conditions
    assert not space.violated
    assert type(pickle.loads(pickle.dumps(n))) is int
    assert copy.deepcopy([n]) == [113]
    assert hash(n) == hash(113)
    assert [0] * Length(2, n.formula, space) == [0] * 2


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_condition_says_where_it_holds(n: int, m: int) -> None:
    _space, a, b = space_of()
    condition = Condition(operator.le, (a // 4).formula, b.formula)
    point = {"n": n, "m": m}
    assert condition.holds_at(point) == (n // 4 <= m)
    values = {s: point[s.name] for s in condition.expression.free_symbols}
    assert bool(condition.expression.xreplace(values)) == (n // 4 <= m)
    assert condition.symbols == {"n", "m"}


def test_nothing_is_defined_where_an_operand_is_not() -> None:
    space, n, m = space_of()
    formula = space.make(operator.floordiv, n.formula, space.make(operator.sub, m.formula, 7))
    assert isinstance(formula, Formula)
    assert formula.values[2] is None
    assert not Condition(operator.gt, formula, 0).holds_at(POINTS[2])
