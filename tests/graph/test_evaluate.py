"""Tests of fxprune.graph.evaluate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.graph.evaluate import Evaluator


def values(program: fp.Program, dtype: torch.dtype) -> dict[str, Tensor]:
    """The stored tensors that a run reads, by name."""
    found: dict[str, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node.op == "get_attr":
            found[str(node.target)] = value

    run = Evaluator(program, dtype)
    run.observe = keep
    run.evaluate(program.args, program.kwargs)
    return found


def test_parameters_in_the_type_of_the_run_are_not_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double().eval()
    program = fp.capture(model, (torch.rand(3, 4, dtype=torch.float64),))
    read = values(program, torch.float64)
    names = [name for name, _ in program.module.named_parameters()]
    assert len(names) == 6
    for name in names:
        assert read[name].data_ptr() == program.tensors()[name].data_ptr()
    for name, copied in values(program, torch.float32).items():
        assert copied.data_ptr() != program.tensors()[name].data_ptr()


class Written(nn.Module):
    """Writes to a view of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        row = self.weight.detach()[0]
        row.mul_(2)
        return x @ self.weight


def test_a_parameter_that_is_written_to_stays_as_it_is() -> None:
    program = fp.capture(Written().double(), (torch.rand(3, 4, dtype=torch.float64),))
    before = program.tensors()["weight"].detach().clone()
    found = Evaluator(program, torch.float64).evaluate(program.args, program.kwargs)
    assert torch.equal(program.tensors()["weight"], before)
    doubled = torch.cat([2 * before[:1], before[1:]])
    assert torch.allclose(found[0], program.args[0] @ doubled)
