from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline


def calls(program: Program) -> int:
    return sum(n.op == "call_function" for n in program.nodes)


class Repeats(nn.Module):
    """Everything twice, once spelled by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.softmax(self.inner(x), 1).sum(1, keepdim=True)
        b = torch.softmax(self.inner(x), dim=1).sum(dim=1, keepdim=True)
        return a * b + x.sum(1)[:, None]


def test_equal_calls_are_made_once(rewritten: Any) -> None:
    result = rewritten(Repeats().double(), torch.randn(3, 4).double(), "merge-duplicates")
    assert calls(result.original) - calls(result.program) == 3


class Different(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = x * 1, x * 1.0
        return one + other + x.sum(1, keepdim=True) + x.sum(0, keepdim=True)


def test_what_differs_in_an_argument_or_its_type_stays(rewritten: Any) -> None:
    result = rewritten(Different(), torch.randn(3, 4).double(), "merge-duplicates")
    assert result.program is result.original


class Draws(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drop = nn.functional.dropout
        return drop(x, 0.5, True) + drop(x, 0.5, True) + torch.rand_like(x) + torch.rand_like(x)


def test_random_operators_stay_apart(rewritten: Any) -> None:
    result = rewritten(Draws(), torch.randn(3, 4).double(), "merge-duplicates", train=True)
    assert result.program is result.original


class Writes(nn.Module):
    """Reads a buffer before and after it is written to."""

    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(4, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.state.exp() + self.state.exp()
        self.state.add_(1)
        return x * before + self.state.exp() + self.state.exp()


def test_nothing_is_merged_across_a_write() -> None:
    program = fp.capture(Writes(), (torch.randn(3, 4).double(),))
    after = run_pipeline(program, "merge-duplicates").program
    assert sum("exp" in n.name for n in program.nodes) == 4
    assert sum("exp" in n.name for n in after.nodes) == 2
    assert any(n.name.startswith("add_") for n in after.nodes)


@pytest.mark.parametrize(("train", "left"), [(True, 2), (False, 1)])
def test_running_statistics_are_gathered_as_often_as_before(
    rewritten: Any, train: bool, left: int
) -> None:
    class TwoCalls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(x)) + torch.sigmoid(self.norm(x))

    model = TwoCalls().double()
    result = rewritten(model, torch.randn(3, 4).double(), "merge-duplicates", train=train)
    assert sum("aten.batch_norm" in str(n.target) for n in result.program.nodes) == left


def test_two_names_of_one_tensor_become_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4, False), nn.ReLU(), nn.Linear(4, 4, False)).double()
    program = fp.capture(model, torch.randn(3, 4).double())
    owner = program.module.get_submodule("2")
    owner._parameters["weight"] = program.tensors()["0.weight"]  # type: ignore[assignment]
    after = run_pipeline(program, "merge-duplicates").program
    assert set(after.tensors()) == {"0.weight"}
    x = torch.randn(5, 4).double()
    assert torch.equal(after(x), program(x))
