"""Computes how many units of each layer are removed in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

SLACK = 1e-9  # the rounding error of a product of shares that should be a whole number


@dataclass(frozen=True)
class UnitQuotas:
    """A share of each layer in every round, up to a target; no layer loses its last unit.

    Args:
        share: the share of each layer that is removed in a round.
        target: the share of each layer that is removed in total; None: all but one unit.
        of: whether `share` refers to the original width, or to the present width and is at least one unit.
    """

    share: float
    target: float | None
    of: Literal["original", "present"]

    def now(self, width: int, present: int, rounds: int) -> int:
        """The number of units of a layer that are removed in a round.

        Args:
            width: the number of units at the start.
            present: the number of units that are left.
            rounds: the number of rounds so far, including this one.
        """
        before = width - present
        if self.of == "original":
            wanted = floor(rounds * self.share * width + SLACK)
        else:
            wanted = before + max(1, floor(self.share * present + SLACK))
        return max(0, min(wanted, self.in_all(width)) - before)

    def in_all(self, width: int) -> int:
        """The number of units of a layer that may be removed in total."""
        if self.target is None:
            return width - 1
        return min(ceil(self.target * width - SLACK), width - 1)

    def are_full(self, widths: Mapping[str, int], present: Mapping[str, int]) -> bool:
        """Whether every layer has reached the target; False where there is no target."""
        return self.target is not None and all(
            width - present[name] >= self.in_all(width) for name, width in widths.items()
        )
