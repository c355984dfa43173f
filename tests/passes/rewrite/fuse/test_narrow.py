"""The channels between two linear layers that stay apart, against the rank of what both compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune.graph.program import Program
from fxprune_passes.rewrite.layers.affine_layer import read_layer

PADDED: Any = {"kernel_size": 3, "padding": 1}


def widths(program: Program) -> list[int]:
    layers = [x for n in program.nodes if (x := read_layer(n)) is not None]
    return [layer.geometry.outputs for layer in layers]


def make(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize(
    ("bias", "between", "rank"),
    [
        (True, 40, 28),  # 3 channels of 3 x 3 and the bias
        (False, 40, 27),
        (True, 20, 20),
    ],
)
def test_a_middle_wider_than_its_inputs(
    rewritten: Any, bias: bool, between: int, rank: int
) -> None:
    """Behind the border, where fusing would not be exact."""
    model = make(nn.Conv2d(3, between, **PADDED, bias=bias), nn.Conv2d(between, 60, **PADDED))
    result = rewritten(model, torch.randn(2, 3, 7, 7).double(), "fuse-linear")
    assert widths(result.program) == [rank, 60]
    (remark,) = result.select(kind="missed")
    assert remark.code == "fuse-linear.border"
    assert remark.why.endswith(f"all {rank} channels between the layers are needed (rank {rank})")
    codes = [r.code for r in result.select(kind="applied")]
    assert codes == ["fuse-linear.narrowed"] * (rank < between)


def test_a_middle_wider_than_its_outputs(rewritten: Any) -> None:
    model = make(
        nn.Conv1d(50, 30, 5, stride=2, dilation=2, padding=2), nn.Conv1d(30, 7, 3, padding=1)
    )
    result = rewritten(model, torch.randn(2, 50, 30).double(), "fuse-linear")
    assert widths(result.program) == [21, 7]


def test_weights_that_together_have_a_low_rank(rewritten: Any) -> None:
    """Neither layer alone: the rows of one are orthogonal to half of what the other reads."""
    first, second = nn.Linear(32, 8), nn.Linear(8, 32)
    basis = torch.linalg.qr(torch.randn(8, 8).double())[0]
    model = make(first, second)
    with torch.no_grad():
        first.weight.copy_(basis[:, :6] @ torch.randn(6, 32).double())
        first.bias.copy_(basis[:, 0])
        second.weight.copy_(torch.randn(32, 6).double() @ basis[:, 2:].T)
    result = rewritten(model, torch.randn(3, 32).double(), "fuse-linear")
    assert widths(result.program) == [4, 32]


def test_each_pair_of_a_row(rewritten: Any) -> None:
    model = make(
        nn.Conv2d(2, 30, **PADDED), nn.Conv2d(30, 30, **PADDED), nn.Conv2d(30, 2, **PADDED)
    )
    result = rewritten(model, torch.randn(2, 2, 7, 7).double(), "fuse-linear")
    assert widths(result.program) == [19, 18, 2]


def test_groups_stay(rewritten: Any) -> None:
    model = make(nn.Conv2d(2, 40, **PADDED, groups=2), nn.Conv2d(40, 8, **PADDED))
    result = rewritten(model, torch.randn(2, 2, 7, 7).double(), "fuse-linear")
    assert widths(result.program) == [40, 8]


def test_nothing_passes(rewritten: Any) -> None:
    """A product of 0 keeps one channel."""
    model = make(nn.Linear(16, 8), nn.Linear(8, 16))
    nn.init.zeros_(model[1].weight)  # type: ignore[index]
    result = rewritten(model, torch.randn(3, 16).double(), "fuse-linear")
    assert widths(result.program) in ([1, 16], [16])
