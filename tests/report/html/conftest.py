"""A pruned network with a report of every kind of part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.report import Outcome


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.two(self.norm(self.one(x)).relu())
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3), nn.Sequential(Block(), Block())
        self.table = nn.Linear(8, 6)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks(self.stem(x)).mean((2, 3))
        z: torch.Tensor = self.head(y) + self.table(y).sort(-1)[0][..., :4]
        return z


@pytest.fixture(scope="session")
def outcome() -> Outcome:
    torch.manual_seed(0)
    return fp.prune(Net().eval(), torch.randn(2, 3, 8, 8), keep=0.6)
