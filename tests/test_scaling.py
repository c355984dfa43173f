"""Work that grows with the depth of a network, counted in array operations instead of seconds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import find_groups
from fxprune.analysis.solve import solve
from fxprune.graph.program import Program
from fxprune.plan import plan_removal


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


@cache
def program(kind: str, depth: int) -> Program:
    if kind == "residual":
        return fp.capture(
            nn.Sequential(*(Block() for _ in range(depth))).eval(), torch.ones(2, 4, 2, 2)
        )
    layers = (nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True) for _ in range(depth))
    return fp.capture(nn.Sequential(*layers).eval(), torch.ones(2, 3, 8))


@cache
def axes(kind: str, depth: int) -> Axes:
    return solve(program(kind, depth))


def calls(work: Callable[[], Any]) -> int:
    """Calls of Python and C functions; unlike seconds, the same on every machine.

    The garbage of earlier tests would be collected, and its finalisers counted, at any time.
    """
    count = 0

    def tally(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.collect()
    gc.disable()
    sys.setprofile(tally)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


STAGES: dict[str, Callable[[str, int], Any]] = {
    "solve": lambda kind, n: solve(program(kind, n)),
    "groups": lambda kind, n: find_groups(axes(kind, n)),
    "plan": lambda kind, n: plan_removal(program(kind, n), axes(kind, n), []),
}


@pytest.mark.parametrize("kind", ["residual", "transformer"])
@pytest.mark.parametrize("stage", STAGES)
def test_calls_grow_linearly_with_depth(stage: str, kind: str) -> None:
    run = STAGES[stage]
    for depth in (2, 4, 16):  # what is worked out once is not counted
        run(kind, depth)
    small, large = (calls(lambda n=n: run(kind, n)) for n in (4, 16))  # type: ignore[misc]
    assert large < 4.2 * small


def test_positions_cost_no_calls() -> None:
    found = []
    for width in (8, 512):
        captured = fp.capture(
            nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8)), torch.ones(2, 8)
        )
        solve(captured)
        found.append(calls(lambda p=captured: find_groups(solve(p))))  # type: ignore[misc]
    assert found[1] <= 1.05 * found[0]
