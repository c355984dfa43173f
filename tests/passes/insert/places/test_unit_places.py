"""Tests of where unit gates are put: where a 0 is the same as no unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.gate import gate_nodes
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result


class Read(nn.Module):
    """A layer whose units something reads."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(6, 8), nn.Linear(8, 4), kind
        self.norm, self.rms = nn.LayerNorm(8), nn.RMSNorm(8)
        self.cell, self.codes = nn.GRU(6, 8, batch_first=True), nn.Parameter(torch.randn(2, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.kind == "distance":
            return torch.cdist(y, self.a(x.flip(1)))
        if self.kind == "codes":
            return torch.cdist(y, self.codes)
        if self.kind == "recurrent":
            return self.b(self.cell(x)[0])
        return self.b({"norm": self.norm, "rms": self.rms}[self.kind](y))


def inserted(kind: str, *, exact: bool = True) -> Result:
    program = fp.capture(Read(kind).eval(), (torch.randn(2, 5, 6),))
    return run_pipeline(program, f"insert-gates{{scope=unit exact={str(exact).lower()}}}")


def test_a_gate_stands_in_front_of_a_mean_square() -> None:
    (nodes,) = gate_nodes(inserted("rms").program).values()
    assert [user.target for n in nodes for user in n.users] == [torch.ops.aten.rms_norm.default]


def test_asked_for_a_gate_stands_behind_another_norm_and_a_remark_says_what_that_means() -> None:
    result = inserted("norm", exact=False)
    (nodes,) = gate_nodes(result.program).values()
    assert [user.target for n in nodes for user in n.users] == [torch.ops.aten.linear.default]
    (said,) = [r for r in result.remarks if r.code == "insert-gates.statistics"]
    assert "layer_norm" in said.why


def test_both_sides_of_a_distance_are_gated() -> None:
    (nodes,) = gate_nodes(inserted("distance").program).values()
    assert len(nodes) == 2


@pytest.mark.parametrize("kind", ["norm", "codes", "recurrent"])
def test_no_gate_where_a_0_is_not_the_same_as_no_unit(kind: str) -> None:
    result = inserted(kind)
    assert not gate_nodes(result.program)
    assert {r.code for r in result.select("insert-gates", "missed")} == {"insert-gates.no-place"}
