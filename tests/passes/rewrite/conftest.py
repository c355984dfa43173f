"""A network, and constant units in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def lenet() -> nn.Sequential:
    """Two convolutions, one with a batch norm, and two linear layers for images of 10 x 10."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Dropout2d(), nn.Flatten()),
        *(nn.Linear(32, 12), nn.GELU(), nn.Linear(12, 5)),
    )


@pytest.fixture(scope="session")
def kill() -> Callable[[nn.Module, list[int], float], None]:
    """Makes some outputs of a layer constant."""
    return _kill


def _kill(layer: nn.Module, rows: list[int], value: float) -> None:
    with torch.no_grad():
        for tensor, number in ((layer.weight, 0.0), (layer.bias, value)):
            assert isinstance(tensor, Tensor)
            tensor[rows] = number
