"""Decisions where nothing can be removed: the error says what stands in the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import BudgetError, ScoreError


class Decomposed(nn.Module):
    """All of its units enter an operator that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.linalg.svd(self.one(x))[0])


def message(model: nn.Module) -> str:
    with pytest.raises(BudgetError, match="nothing can be removed") as error:
        fp.prune(model.eval(), torch.randn(2, 5, 4))
    return str(error.value)


def test_an_operator_without_a_rule_is_named() -> None:
    found = message(Decomposed())
    assert "linalg_svd" in found
    assert "no rule" in found
    assert "docs/rules.md" in found


def test_each_frozen_weight_is_named_with_its_reason() -> None:
    assert "weight:0: node output = output: it is an output of the network" in message(
        nn.Linear(4, 2)
    )


def test_many_weights_of_one_reason_share_a_line() -> None:
    found = message(nn.Sequential(*(nn.Conv1d(5, 5, 1, groups=5) for _ in range(30))))
    assert "10 more weights" in found
    assert len(found.splitlines()) < 30


class Branches(nn.Module):
    """One of two layers runs, by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cond(x.sum() > 0, self.one, self.two, (x,)))


def test_a_branch_by_a_value_is_named() -> None:
    assert "torch.cond runs graphs of its own" in message(Branches())


class Sorted(torch.autograd.Function):
    """Sorts rows, and hands gradients on as if it did not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sort(-1)[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class Features(nn.Module):
    """Fixed features, which are buffers, beside a layer whose units pass a Function."""

    into: torch.Tensor
    back: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("into", torch.randn(4, 9))
        self.register_buffer("back", torch.randn(9, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = Sorted.apply(self.one(x))
        return self.two(y) + (x @ self.into).relu() @ self.back


def test_where_a_criterion_scores_nothing_the_frozen_axes_are_explained() -> None:
    with pytest.raises(ScoreError, match="'magnitude' scores nothing that can be removed") as error:
        fp.prune(Features().train(), torch.randn(5, 4), importance="magnitude")
    found = str(error.value)
    assert "it says nothing of into:1" in found
    assert "Sorted" in found
    assert "no rule" in found


def test_a_criterion_of_other_layers_says_what_it_does_not_score() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ScoreError, match=r"'bn-scale' .*\n.*it says nothing of 0\.weight:0"):
        fp.prune(model, torch.randn(5, 4), importance="bn-scale")
