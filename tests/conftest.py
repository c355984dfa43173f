"""Small captured networks that many tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.testing.passes import Ones

# The same examples in every run: a search for others is `-m slow`.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def own_modules_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a test imported from files of its own are not those of another test's files of the same name."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


class Residual(nn.Module):
    """A stem, two residual blocks of unequal weight, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.one = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1)
        )
        self.two = nn.Sequential(
            nn.Conv2d(16, 40, 1), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 16, 1)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.one(x))
        x = torch.relu(x + self.two(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="session")
def residual() -> nn.Module:
    """The network, in eval mode."""
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="session")
def program(residual: nn.Module) -> Program:
    """The network, captured."""
    return fp.capture(residual, torch.randn(2, 3, 8, 8))


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
