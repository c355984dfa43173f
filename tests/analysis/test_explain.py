from __future__ import annotations

import pytest

import fxprune as fp
from fxprune.errors import PlanError
from fxprune.graph.program import Program


def test_members_come_with_the_operators_that_couple_them(program: Program) -> None:
    found = fp.explain(program, "one.2.weight", 0)
    paths = {(m.param, m.axis): m.path for m in found.members}
    assert paths["one.2.weight", 0] == ()
    assert "add" in paths["stem.0.weight", 0][0]
    assert any("linear" in step for step in paths["head.weight", 1])
    assert "conftest.py" in paths["stem.0.weight", 0][0]


def test_an_output_is_named_as_the_reason(program: Program) -> None:
    assert "an output of the network" in fp.explain(program, "head.weight", 0).frozen


def test_an_input_is_named_as_the_reason(program: Program) -> None:
    assert "conv2d" in fp.explain(program, "stem.0.weight", 1).frozen


def test_unknown_names_are_errors(program: Program) -> None:
    with pytest.raises(PlanError, match=r"no tensor head\.bias with an axis 3"):
        fp.explain(program, "head.bias", 3)
