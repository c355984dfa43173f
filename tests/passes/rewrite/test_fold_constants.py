from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fxprune.graph.program import Program


def calls(program: Program) -> int:
    return sum(n.op == "call_function" for n in program.nodes)


class Bias(nn.Module):
    """A relative-position bias: rows of a table, by an index that is computed."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(7, 1), requires_grad=trained)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(4)
        bias = self.table[place[:, None] - place[None] + 3].squeeze(-1)
        return self.inner(x) @ bias.softmax(1)


def test_a_gathered_bias_is_stored(rewritten: Any) -> None:
    x = torch.randn(3, 4).double()
    result = rewritten(Bias(trained=False).double(), x, "fold-constants")
    assert calls(result.program) == 2
    assert "table" not in result.program.tensors()


def test_what_is_trained_is_left_unless_asked(rewritten: Any) -> None:
    x = torch.randn(3, 4).double()
    result = rewritten(Bias(trained=True).double(), x, "fold-constants")
    assert "table" in result.program.tensors()
    missed = result.select(kind="missed")
    assert [r.code for r in missed] == ["fold-constants.trained"]
    assert "training would no longer reach table" in missed[0].why
    asked = rewritten(Bias(trained=True).double(), x, "fold-constants{parameters=true}").program
    assert calls(asked) == 2
    assert sum(t.requires_grad for t in asked.tensors().values()) == 3


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return self.norm(nn.functional.conv2d(x, w, self.conv.bias))


def test_a_standardised_weight_is_stored_and_its_batch_norm_folded(rewritten: Any) -> None:
    x = torch.randn(2, 3, 6, 6).double()
    result = rewritten(Standardised().double(), x, "fold-constants | fold-batchnorm")
    assert calls(result.program) == 1


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Buffer(torch.randn(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.outer(self.row, self.row).sin()


@pytest.mark.parametrize(("option", "left"), [("", 3), ("{max-growth=1000}", 1)])
def test_growth_is_bounded(rewritten: Any, option: str, left: int) -> None:
    result = rewritten(Large().double(), torch.randn(64, 64).double(), f"fold-constants{option}")
    assert calls(result.program) == left
    assert len(result.select(kind="missed")) == (left == 3)


class Left(nn.Module):
    """Nothing here is the same at every call, or worth storing."""

    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(4, dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(4, 4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state.add_(1)
        y = x @ self.weight.t() + torch.rand(4) + self.state.exp()
        return y * torch.arange(x.shape[0])[:, None] + torch.zeros(4)


def test_random_written_and_batch_dependent_values_are_not_constant(rewritten: Any) -> None:
    result = rewritten(Left().double(), torch.randn(3, 4).double(), "fold-constants", train=True)
    assert result.program is result.original


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Buffer(torch.randn(1, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.row.exp().expand(64, 64)


def test_of_a_view_the_smaller_source_is_stored(rewritten: Any) -> None:
    result = rewritten(Expanded().double(), torch.randn(64, 64).double(), "fold-constants")
    assert calls(result.program) == 2
    assert max(t.numel() for t in result.program.tensors().values()) == 64


class Computed(nn.Module):
    """A linear layer whose weight is computed in a type that the code names."""

    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.randn(4, 4)), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.how(self.weight)


@pytest.mark.parametrize(
    "how",
    [
        lambda w: w.softmax(1, dtype=torch.float32),
        lambda w: w / w.sum(1, keepdim=True, dtype=torch.float32),
        lambda w: (w.to(torch.float32) + torch.ones(4, dtype=torch.float32)).cos(),
        lambda w: torch.complex(w, w).to(torch.complex64).abs(),
    ],
)
def test_a_computed_weight_keeps_its_type(rewritten: Any, how: Any) -> None:
    result = rewritten(Computed(how), torch.randn(3, 4), "fold-constants{parameters=true}")
    (weight,) = result.program.tensors().values()
    assert weight.dtype == torch.float32
    assert calls(result.program) == 1


def test_a_normalised_weight_is_stored(rewritten: Any) -> None:
    model = weight_norm(nn.Conv1d(4, 6, 3)).eval()
    result = rewritten(model, torch.randn(2, 4, 9), "fold-constants{parameters=true} | dead-code")
    assert {t.shape for t in result.program.tensors().values()} == {(6, 4, 3), (6,)}


class OwnType(nn.Module):
    """A norm in float32 that goes back to the type of what came in, which is float32 as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.tanh()
        wide = x.to(torch.float32)
        return (wide * wide.square().mean(1, keepdim=True).rsqrt()).to(x.dtype) + wide.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_value_in_its_own_type_is_not_constant(rewritten: Any, dtype: torch.dtype) -> None:
    result = rewritten(OwnType(), torch.randn(3, 4, dtype=dtype), "fold-constants")
    assert result.program is result.original


def test_a_value_cast_to_the_type_of_itself_is_not_constant(rewritten: Any) -> None:
    class Cast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.exp()
            return y.type_as(y).square()

    result = rewritten(Cast(), torch.randn(3, 4), "fold-constants")
    assert result.program is result.original
