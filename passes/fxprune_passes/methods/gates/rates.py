"""The step sizes in theta, for gates on branches and for gates on units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from fxprune.training import TrainingError
from fxprune_passes.methods.gates.life import Life
from fxprune_passes.methods.method import check_options

Tensor = torch.Tensor
Rate = float | Literal["auto"]


class Rates:
    """Step sizes that are given, or that follow from the sizes of what thetas move by.

    A theta without worth moves by rate times its cost in a step, on average also where gates take turns. So "auto"
    is what theta is to fall by in a step, divided by the mean cost of the kind of gate: at the mean cost, what is worth
    nothing goes from `start` to 0 in a share `within` of the steps of the training.

    Args:
        rate: for branches, and for units if there are no others.
        unit_rate: for units; None: such that a unit without worth falls as fast as such a branch.
        start: the theta from which a gate falls.
        within: the share of the training, above 0 and at most 1.
        life: knows the steps of the training.
    """

    def __init__(
        self, rate: Rate, unit_rate: Rate | None, start: float, within: float, life: Life
    ) -> None:
        given = {"rate": rate, "unit_rate": unit_rate}
        check_options(
            *((n, r, _is_rate(r), 'above 0, or "auto"') for n, r in given.items() if r is not None),
            ("fall_within", within, 0 < within <= 1, "above 0 and at most 1"),
        )
        self.rate, self.unit_rate = rate, unit_rate
        self.start, self.within, self.life = start, within, life

    @property
    def auto(self) -> bool:
        """Whether the steps of the training must be known."""
        return "auto" in (self.rate, self.unit_rate)

    def find(self, sizes: Mapping[str, Tensor]) -> tuple[float, float]:
        """The step sizes for branches and for units.

        Args:
            sizes: by gate path, the costs, or what else thetas move by: `[]` for branches, `[size]` for units.

        Raises:
            TrainingError: a step size is automatic, but nothing costs anything.
        """
        branches = _mean([size for size in sizes.values() if not size.dim()])
        units = _mean([size for size in sizes.values() if size.dim()])
        rate = self._scaled(branches or units) if self.rate == "auto" else self.rate
        if self.unit_rate == "auto" or (self.unit_rate is None and self.rate == "auto"):
            return rate, self._scaled(units or branches)
        if self.unit_rate is None:
            return rate, rate * branches / units if branches and units else rate
        return rate, self.unit_rate

    def _scaled(self, size: float) -> float:
        if not size > 0:
            raise TrainingError(
                'rate="auto" needs gates with a price',
                why="a gate that costs nothing does not fall, at any rate",
                do="give the rate as a number",
            )
        return self.start / (self.within * self.life.all_steps) / size


def _is_rate(rate: Rate) -> bool:
    return rate == "auto" or (isinstance(rate, int | float) and 0 < rate < float("inf"))


def _mean(sizes: list[Tensor]) -> float:
    return float(torch.cat([s.view(-1) for s in sizes]).double().mean().abs()) if sizes else 0.0
