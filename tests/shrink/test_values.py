from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.analysis.solve import solve
from fxprune.graph.program import Program
from fxprune.plan import plan_removal
from fxprune.shrink import apply_plan
from fxprune.testing.sample import build_program, sample, t


class Turned(nn.Module):
    """A layer that loses units, and a view of the input that loses nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.transpose(1, 2)).relu())


@pytest.fixture
def program() -> Program:
    return fp.capture(Turned(), (torch.randn(3, 4, 5),))


def test_values_described_elsewhere_are_not_kept(program: Program) -> None:
    for node in program.nodes:
        node.meta["tensor_meta"] = "the sizes before"
    small = fp.shrink(program, fp.plan(program, {"a.weight": (0, [2])}))
    (relu,) = (n for n in small.nodes if "relu" in str(n.target))
    assert "tensor_meta" not in relu.meta
    assert all("tensor_meta" in n.meta for n in program.nodes)


def test_a_value_that_loses_nothing_lies_in_memory_as_before(program: Program) -> None:
    small = fp.shrink(program, fp.plan(program, {"a.weight": (0, [2])}))
    (turned,) = (n for n in small.nodes if "transpose" in str(n.target))
    assert turned.meta["val"].shape[1:] == (5, 4)
    assert turned.meta["val"].stride()[1:] == (1, 5)


def test_a_result_that_is_no_tensor_stays() -> None:
    shapes = t(3, 4), t(3, 4), [4], t(3, 1), t(3, 1), None, None
    program = build_program(
        sample("aten.native_layer_norm_backward", *shapes, [True, False, False])
    )
    axes = solve(program)
    small = apply_plan(program, axes, plan_removal(program, axes, np.zeros(0, np.int64)))
    (node,) = (n for n in small.nodes if "backward" in str(n.target))
    assert node.meta["val"][1:] == [None, None]
