"""Two gloo processes by torchrun, and what one process alone does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.testing.processes import run_group
from fxprune.testing.training import Mlp, capture, make_model, weights

SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_stay_equal() -> None:
    assert "agreed" in run_group(SCRIPT)


def test_one_process_agrees_with_itself() -> None:
    program = capture(make_model(Mlp))
    plan = fp.plan(program, {"one.weight": (0, [1])})
    assert fp.training.check_agreed(plan) is plan
    assert fp.training.broadcast_plan(plan) is plan
    with pytest.raises(fp.training.TrainingError, match="no plan"):
        fp.training.broadcast_plan(None)
    statistics = {"b": torch.ones(2), "a": torch.zeros(1)}
    found = fp.training.all_reduced(statistics)
    assert torch.equal(found["b"], statistics["b"])
    assert found["b"] is not statistics["b"]


def test_wrapped_networks_are_refused() -> None:
    program = capture(make_model(Mlp))
    optimizer = torch.optim.SGD(weights(program), 0.1)
    with pytest.raises(fp.training.TrainingError, match="wrapped in DataParallel"):
        fp.training.Shrinker(nn.DataParallel(program.module), optimizer)
