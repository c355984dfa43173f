"""The network that tests of observers share."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch import nn


@pytest.fixture
def small() -> nn.Module:
    """A convolution and two linear layers, in eval mode, for inputs `[n, 1, 4, 4]`."""
    layers = {
        "conv": nn.Conv2d(1, 6, 3, padding=1),
        "act": nn.ReLU(),
        "flat": nn.Flatten(),
        "one": nn.Linear(6 * 16, 8),
        "relu": nn.ReLU(),
        "two": nn.Linear(8, 3),
    }
    return nn.Sequential(OrderedDict(layers)).eval()
