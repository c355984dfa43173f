"""Decisions where nothing can be removed: the error says what stands in the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import BudgetError


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
