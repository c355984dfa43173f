"""What is remembered of a program: worked out once, handed on by name, gone with the program."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.cache import hand_on, remember, solved
from fxprune.graph.program import Program


def captured() -> Program:
    return fp.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4))


def test_labels_are_solved_once_for_a_program() -> None:
    one, other = captured(), captured()
    assert solved(one) is solved(one)
    assert solved(one) is not solved(other)


def test_only_what_is_named_is_handed_on() -> None:
    before, after = captured(), captured()
    for key in ("kept", "dropped"):
        remember(before, key, lambda: "before")
    hand_on(before, after, ["kept"])
    found = [remember(after, key, lambda: "anew") for key in ("kept", "dropped")]
    assert found == ["before", "anew"]


def test_what_is_remembered_goes_with_the_program() -> None:
    program = captured()
    seen = weakref.ref(remember(program, "value", nn.Identity))
    del program
    gc.collect()
    assert seen() is None


class Positions(nn.Module):
    """A batch norm that takes its statistics over the axis whose positions can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(3), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("training", [True, False])
def test_a_switch_of_the_mode_leaves_nothing_stale(training: bool) -> None:
    model, x = Positions(), torch.randn(4, 3, 6)
    switched = fp.capture(model.train(not training), x)
    fp.prune(switched, keep=0.5)
    regions = fp.run(switched, None, "linear-regions").remarks
    switched.train(training)
    fresh = fp.capture(model.train(training), x)
    for program in (switched, fresh):
        (group,) = fp.groups(program)
        assert group.exact is not training
        assert fp.prune(program, keep=0.5).report.checks[0].ok
    assert fp.prune(switched, keep=0.5).plan.removed.tolist() == [
        *fp.prune(fresh, keep=0.5).plan.removed
    ]
    assert fp.run(switched, None, "linear-regions").remarks != regions


def test_units_and_plans_are_those_of_both_modes() -> None:
    program = fp.capture(Positions().train(), torch.randn(4, 3, 6))
    plan = fp.prune(program, keep=0.5).plan
    small = fp.shrink(program.eval(), plan)
    assert not small.training
    assert fp.verify(program, plan, small).ok
