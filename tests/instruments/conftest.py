"""Networks that the tests of pipelines share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.testing.passes import Ones


@pytest.fixture
def ones() -> Program:
    """Forty rewrites wait in it."""
    torch.manual_seed(0)
    return fp.capture(Ones().eval(), torch.randn(2, 4))


@pytest.fixture
def small() -> nn.Module:
    """Two layers, a dropout between them, in eval mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)).eval()
