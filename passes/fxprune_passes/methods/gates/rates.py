"""The step sizes in theta, for gates on branches and for gates on units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from fxprune.training import TrainingError

Tensor = torch.Tensor
Rate = float | Literal["auto"]


def find_rates(
    rate: Rate, unit_rate: Rate | None, costs: Mapping[str, Tensor], fall: float
) -> tuple[float, float]:
    """The step sizes for branches and for units.

    A theta without worth moves by rate times its cost in a step, on average also where gates take turns. So
    `auto` is `fall` divided by the mean cost of the kind of gate: what is worth nothing, at the mean cost, goes from
    `start` to 0 in the wished number of steps.

    Args:
        rate: for branches, and for units if there are no others.
        unit_rate: for units; None: such that a unit without worth falls as fast as such a branch.
        costs: the costs by gate path, shaped like theta.
        fall: by how much theta is to fall in one step.

    Raises:
        TrainingError: `auto` is asked for, but nothing costs anything.
    """
    branches = _mean([c for c in costs.values() if not c.dim()])
    units = _mean([c for c in costs.values() if c.dim()])
    block_rate = _scaled(fall, branches or units) if rate == "auto" else rate
    if unit_rate == "auto" or (unit_rate is None and rate == "auto"):
        return block_rate, _scaled(fall, units or branches)
    if unit_rate is None:
        return block_rate, block_rate * branches / units if branches and units else block_rate
    return block_rate, unit_rate


def _scaled(fall: float, cost: float) -> float:
    if not cost > 0:
        raise TrainingError(
            'rate="auto" needs gates with a price',
            why="a gate that costs nothing does not fall, at any rate",
            do="give the rate as a number",
        )
    return fall / cost


def _mean(costs: list[Tensor]) -> float:
    return float(torch.cat([c.view(-1) for c in costs]).double().mean().abs()) if costs else 0.0
