"""Tests of dead-units-seen: units that were never on go, others stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.observe import observers
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result

Rewritten = Callable[..., Result]
Kill = Callable[[nn.Module, list[int], float], None]


def watched(model: nn.Module, x: Tensor) -> Program:
    program = fp.capture(model.eval(), x)
    program = run_pipeline(program, "insert-observers").program
    program(x)
    return program


def test_units_never_seen_on_go(rewritten: Rewritten) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU6(), nn.Conv2d(6, 2, 1)
    ).double()
    x = torch.randn(2, 3, 6, 6).double()
    for at, rows in ((0, [1, 4]), (2, [3])):
        bias = model.get_parameter(f"{at}.bias")
        with torch.no_grad():
            bias.fill_(1.0)
            bias[rows] = -50.0
    program = watched(model, x)
    result = run_pipeline(program, "dead-units-seen")
    tensors = result.program.tensors().items()
    assert {name: tuple(t.shape) for name, t in tensors if t.dim() > 1} == {
        "0.weight": (6, 3, 3, 3), "2.weight": (5, 6, 3, 3), "4.weight": (2, 5, 1, 1),
    }  # fmt: skip
    assert result.steps[0].checks[0].against == "the silenced original"
    torch.testing.assert_close(result.program(x), program(x))
    assert [o.get_buffer("on").numel() for o in observers(result.program).values()] == [6, 5]
    assert run_pipeline(result.program, "dead-units-seen").program is result.program


def test_gelu_makes_no_zeros_of_what_is_off(kill: Kill) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double()
    kill(model[0], [1], -3.0)
    program = watched(model, torch.randn(5, 3).double())
    assert run_pipeline(program, "dead-units-seen").program is program


def test_a_unit_that_is_read_elsewhere_stays(kill: Kill) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(x + torch.relu(self.b(x)))

    model = Residual().double()
    kill(model.b, [1], -3.0)
    program = watched(model, torch.randn(5, 3).double())
    assert run_pipeline(program, "dead-units-seen").program is program


def test_without_data_or_observers_nothing_is_known(lenet: nn.Sequential) -> None:
    program = fp.capture(lenet.double().eval(), torch.randn(3, 1, 10, 10).double())
    result = run_pipeline(program, "dead-units-seen")
    assert [r.code for r in result.remarks] == ["dead-units-seen.no-observers"]
    result = run_pipeline(program, "insert-observers | dead-units-seen")
    codes = [r.code for r in result.select("dead-units-seen")]
    assert codes == ["dead-units-seen.no-data"] * 3 + ["dead-units-seen.no-observers"]
