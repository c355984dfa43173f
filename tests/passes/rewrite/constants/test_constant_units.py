"""Tests of the units that are constant in a value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.pipeline.result import Result
from fxprune_passes.rewrite.constants.constant_units import constant_units

Rewritten = Callable[..., Result]
Kill = Callable[[nn.Module, list[int], float], None]


def test_what_is_known_of_a_value(lenet: nn.Sequential, kill: Kill) -> None:
    model = lenet.double()
    kill(model[1], [2], 0.7)
    program = fp.capture(model.eval(), torch.randn(3, 1, 10, 10).double())
    known = {node.name: found for node, found in constant_units(program).items()}
    assert known["relu"].values[2] == pytest.approx(0.7)
    assert known["relu"].values.isnan().sum() == 5
    assert known["batch_norm"].axis == 1
