"""Tests of the observers of a program."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.evaluate import Evaluator
from fxprune.observe import observers
from fxprune.pipeline import run_pipeline


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checks_do_not_count(small: nn.Module, dtype: torch.dtype) -> None:
    x = torch.randn(2, 1, 4, 4)
    program = run_pipeline(fp.capture(small, x), "insert-observers").program
    Evaluator(program, dtype).evaluate((x,), {})
    assert all(int(o.seen) == 0 for o in observers(program).values())
    program(x)
    assert [int(o.seen) for o in observers(program).values()] == [32, 2]


def test_a_table_of_all_observers(small: nn.Module) -> None:
    x = torch.randn(2, 1, 4, 4)
    program = run_pipeline(fp.capture(small, x), "insert-observers{stat=covariance}").program
    found = observers(program)
    assert "null" in json.dumps(found.to_json())
    program(x)
    assert "act.observer" in str(found)
    assert found.to_json()["act.observer"]["seen"] == 32
    found.freeze()
    program(x)
    assert int(found["act.observer"].seen) == 32
    assert int(found.reset()["act.observer"].seen) == 0
    assert str(observers(fp.capture(small, x))) == "no observers"
