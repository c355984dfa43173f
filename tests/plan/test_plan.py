from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import PlanError
from fxprune.graph.program import Program


def test_positions_take_everything_coupled_with_them(program: Program) -> None:
    plan = fp.plan(program, {"one.2.weight": (0, [1, 5])})
    kept = np.setdiff1d(np.arange(16), [1, 5])
    cut = {name: axis for name, axes in plan.kept.items() for axis in axes}
    assert {
        "stem.0.weight",
        "stem.1.running_var",
        "one.0.weight",
        "two.3.bias",
        "head.weight",
    } <= set(cut)
    assert all(
        (positions == kept).all() for axes in plan.kept.values() for positions in axes.values()
    )


def test_shrunk_tensors_are_slices_of_the_original(program: Program) -> None:
    plan = fp.plan(program, {"one.0.weight": (0, [0, 7])})
    small = fp.shrink(program, plan)
    for name, tensor in small.tensors().items():
        expected = program.tensors()[name]
        for axis, positions in plan.kept.get(name, {}).items():
            expected = expected.index_select(axis, torch.from_numpy(positions))
        assert torch.equal(tensor, expected)
        assert tensor.data_ptr() != program.tensors()[name].data_ptr()


def test_removing_nothing_changes_nothing(program: Program) -> None:
    plan = fp.plan(program, [])
    x = torch.randn(3, 3, 8, 8)
    assert not plan.kept
    assert torch.equal(fp.shrink(program, plan)(x), program(x))


def test_two_plans_in_a_row_equal_their_union(program: Program) -> None:
    a, b = {"one.0.weight": (0, [2, 3])}, {"one.0.weight": (0, [10]), "two.0.weight": (0, [0, 39])}
    once = fp.shrink(
        program, fp.plan(program, {"one.0.weight": (0, [2, 3, 10]), "two.0.weight": (0, [0, 39])})
    )
    first = fp.shrink(program, fp.plan(program, a))
    twice = fp.shrink(first, fp.plan(first, {**b, "one.0.weight": (0, [8])}))
    for name, tensor in once.tensors().items():
        assert torch.equal(tensor, twice.tensors()[name])


def test_pruning_twice_verifies_against_the_first_result(program: Program) -> None:
    first = fp.prune(program, keep=0.7)
    second = fp.prune(first.program, keep=0.7)
    assert second.report.checks[0].ok
    assert second.report.before.total == first.report.after.total


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"nowhere": (0, [1])}, "no tensor nowhere with an axis 0"),
        ({"head.weight": (7, [1])}, "no tensor head.weight with an axis 7"),
        ({"head.weight": (0, [1])}, "frozen"),
        ({"one.0.weight": (0, [99])}, "outside 0..23"),
        ([10**6], "does not exist"),
        ([0], "does not exist"),
    ],
)
def test_wrong_removals_are_named(program: Program, removed: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fp.plan(program, removed)  # type: ignore[arg-type]


def test_plan_for_another_model_is_refused(program: Program) -> None:
    other = fp.capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4))
    with pytest.raises(PlanError, match="another program"):
        fp.shrink(other, fp.plan(program, {"one.0.weight": (0, [1])}))


def test_edited_plan_is_refused_by_name(program: Program) -> None:
    plan = fp.plan(program, {"one.0.weight": (0, [1])})
    kept = {**plan.kept, "one.0.bias": {0: np.delete(np.arange(24), 2)}}
    edited = dataclasses.replace(plan, kept=kept, program=None)
    with pytest.raises(PlanError, match=r"one\.0\.bias"):
        fp.shrink(program, edited)


def test_original_is_untouched(residual: nn.Module) -> None:
    before = {k: v.clone() for k, v in residual.state_dict().items()}
    outcome = fp.prune(residual, torch.randn(2, 3, 8, 8))
    outcome.program.train()
    outcome.program(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in residual.state_dict().items())
    assert all(p.grad is None for p in residual.parameters())
    assert not residual.training


def test_plan_of_one_mode_fits_the_other(residual: nn.Module) -> None:
    program = fp.capture(copy.deepcopy(residual), torch.randn(2, 3, 8, 8))
    plan = dataclasses.replace(fp.plan(program, {"one.0.weight": (0, [1])}), program=None)
    small = fp.shrink(program.train(), plan)
    assert small.training
    assert fp.verify(program, plan, small).ok
