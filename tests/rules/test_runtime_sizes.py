"""Sizes and positions that are known at run time only, and labels that are handed on as they are."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.algebra.label import Label
from fxprune.algebra.units import Units
from fxprune.rules.table import lookup

AT_RUN_TIME = object()  # stands for a graph node


def call(
    name: str, shape: list[int], out: list[int], *args: Any, symbolic: tuple[int, ...] = ()
) -> Any:
    """The labels of the arguments and of the result, and what is left free."""
    u = Units()
    u.enter("node", out, symbolic=symbolic, arguments=("size",))
    x = u.fresh(shape)
    rule = lookup(name)
    assert rule is not None
    result = rule(u, x, *args)
    free = [bool(u.forest.find(a.columns[0]).any()) for a in x]
    return x, result, free


def test_a_whole_slice_hands_its_labels_on() -> None:
    x, out, free = call("aten.slice.Tensor", [3, 4], [3, 4], 1, 0, AT_RUN_TIME)
    assert out is x
    assert all(free)


@pytest.mark.parametrize("args", [(1, AT_RUN_TIME, 3), (1, 0, AT_RUN_TIME)])
def test_bounds_known_at_run_time_freeze(args: Any) -> None:
    for name in ("aten.slice.Tensor", "aten.narrow"):
        x, out, free = call(name, [3, 4], [3, 2], *args)
        assert free == [True, False]
        assert out[0] is x[0]
        assert len(out[1]) == 2
        assert not out[1].columns


def test_a_slice_of_free_length_freezes() -> None:
    assert call("aten.slice.Tensor", [3, 4], [3, 2], 1, 0, 2, symbolic=(1,))[2] == [True, False]


@pytest.mark.parametrize(("name", "args"), [("aten.expand", ([3, 5],)), ("aten.repeat", ([1, 5],))])
def test_copies_of_free_number_stay(name: str, args: Any) -> None:
    x, out, free = call(name, [3, 1], [3, 5], *args, symbolic=(1,))
    assert out[0] is x[0]
    assert free == [True, False]
    assert isinstance(out[1], Label)
    assert not out[1].columns


def test_constants_of_free_length_stay() -> None:
    u = Units()
    u.enter("node", [3, 4], symbolic=(0,), arguments=("size",))
    rule = lookup("aten.zeros")
    assert rule is not None
    assert [len(x.columns) for x in rule(u, [AT_RUN_TIME, 4])] == [0, 1]


def test_padding_of_a_length_known_at_run_time_freezes() -> None:
    assert call("aten.pad", [3, 4], [3, 6], [0, AT_RUN_TIME])[2] == [True, False]
