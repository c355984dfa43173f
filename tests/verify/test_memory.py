"""Tests of fxprune.verify.memory."""

from typing import Any

import torch
from torch import nn

import fxprune as fp
from fxprune.verify import compare_model
from fxprune.verify.memory import Memory


class Shifted(nn.Linear):
    """Computes something else where it is told to."""

    shift = 0.0

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) + self.shift


def test_a_program_runs_once_for_inputs_of_the_same_sizes() -> None:
    program, calls = fp.capture(nn.Linear(4, 3), torch.randn(2, 4)), [0]

    def run(args: Any, _: Any) -> list[torch.Tensor]:
        calls[0] += 1
        return [args[0] + 1]

    memory = Memory()
    one, two = memory.batches(program, 0)
    assert list(memory.batches(program, 0)) == [one, two]
    for batch in (one, two, one, two):
        found = memory.remembering(lambda: run)(batch.args, batch.kwargs)
        assert torch.equal(found[0], batch.args[0] + 1)
    assert calls[0] == 2


def test_each_model_is_held_against_what_is_remembered() -> None:
    model, memory = Shifted(4, 3), Memory()
    program = fp.capture(model, torch.randn(2, 4))
    for shift in (0.0, 1.0, 0.0):
        model.shift = shift
        assert compare_model(model, program, memory=memory).ok is (shift == 0)
