"""How the solving time grows with the depth of a network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fxprune as fp
from benchmarks.conftest import Compare
from fxprune.analysis.solve import solve

EXPONENT = 1.15
DEPTHS = {"residual": (10, 20, 40, 80, 160, 320), "transformer": (4, 8, 16, 32, 64)}


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in "ab"]
        self.body = nn.Sequential(*layers[0], *layers[1][:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def captured(kind: str, blocks: int) -> fp.Program:
    """A network of that many blocks."""
    if kind == "residual":
        ends = nn.Conv2d(3, 16, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        body: list[nn.Module] = [Residual() for _ in range(blocks)]
        model = nn.Sequential(ends[0], *body, ends[1], nn.Linear(16, 10))
        return fp.capture(model.eval(), torch.randn(2, 3, 8, 8))
    body = [nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(blocks)]
    model = nn.Sequential(nn.Linear(8, 32), *body, nn.Linear(32, 8))
    return fp.capture(model.eval(), torch.randn(2, 6, 8))


@pytest.mark.benchmark(group="Solving over depth")
@pytest.mark.parametrize(("kind", "blocks"), [(k, d) for k in DEPTHS for d in DEPTHS[k][1:]])
def test_depth(kind: str, blocks: int, compare: Compare) -> None:
    shallow, deep = captured(kind, DEPTHS[kind][0]), captured(kind, blocks)
    times = blocks / DEPTHS[kind][0]
    row = compare(lambda: solve(shallow), lambda _: solve(deep), 7, times**EXPONENT)
    row["nodes"] = len(deep.graph.nodes)
    row["exponent"] = math.log(row["ratio"], times)
    row["µs per node"] = 1e3 * row["ms"] / row["nodes"]
