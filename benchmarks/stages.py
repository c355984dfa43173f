"""Clocks, and the stages from a captured network to a smaller one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

import fxprune as fp
from fxprune.api import solved

SHARE = 0.3
STAGES = ("solve", "groups", "plan", "shrink")


class RelativeClock:
    """A timer whose unit is the duration of the reference work that ran last: it measures ratios.

    Attributes:
        seconds: the clock underneath: CPU time where one thread works, wall time where several do.
        unit: the seconds that the reference work took.
    """

    def __init__(self) -> None:
        self.seconds: Callable[[], float] = time.process_time
        self.unit = 1.0
        self.__name__ = "CLOCK"  # by which pytest-benchmark finds a timer

    def __call__(self) -> float:
        return self.seconds() / self.unit

    def run_reference(self, work: Callable[[], Any]) -> Any:
        """Runs the reference work, which sets the unit, and returns its result."""
        start = self.seconds()
        result = work()
        self.unit = self.seconds() - start
        return result


CLOCK = RelativeClock()


class Laps(dict[str, float]):
    """CPU seconds of this process by the name of a stage."""

    def __call__(self, stage: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Calls `work`, keeps how long it took, even where it fails, and returns its result."""
        start = time.process_time()
        try:
            return work(*args, **options)
        finally:
            self[stage] = time.process_time() - start


def decide(program: fp.Program, laps: Laps) -> tuple[Any, Any, fp.Plan]:
    """The axes, the groups, and the plan that removes a random 30 % of each group."""
    axes = laps("solve", solved, program)
    groups = laps("groups", fp.groups, program)
    return axes, groups, laps("plan", fp.plan, program, draw(groups))


def prune(program: fp.Program, laps: Laps) -> tuple[fp.Plan, fp.Program]:
    """The plan and the smaller program."""
    plan = decide(program, laps)[2]
    return plan, laps("shrink", fp.shrink, program, plan)


def draw(groups: Iterable[fp.Group], seed: int = 0) -> Any:
    """Units of every group, drawn at random: at least one goes and at least one stays."""
    rng = np.random.default_rng(seed)
    sizes = ((g.units, min(max(1, int(SHARE * len(g))), len(g) - 1)) for g in groups)
    chosen = (rng.choice(units, size, replace=False) for units, size in sizes)
    return np.concatenate([np.zeros(0, np.int64), *chosen])


def count(module: nn.Module) -> int:
    """How many parameters a module has; a shared one counts once."""
    return sum(p.numel() for p in module.parameters())


def warm_up() -> None:
    """One small network through every stage: imports and first calls are not the network's."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    prune(fp.capture(model.eval(), torch.randn(2, 3, 8, 8)), Laps())
