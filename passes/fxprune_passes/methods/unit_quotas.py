"""How many units of each layer go in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

SLACK = 1e-9  # what a product of shares may miss a whole number by


@dataclass(frozen=True)
class UnitQuotas:
    """The bottom share of each layer, round after round, up to a target; no layer loses its last unit.

    Args:
        share: of each layer that goes in a round.
        target: share of each layer that goes in all; None: all but one unit.
        of: whether `share` is one of the width at the start, or of that at the time: at least one unit then.
    """

    share: float
    target: float | None
    of: Literal["original", "present"]

    def now(self, width: int, present: int, rounds: int) -> int:
        """How many units of a layer go in a round.

        Args:
            width: units at the start.
            present: units that are left.
            rounds: rounds so far, this one included.
        """
        before = width - present
        if self.of == "original":
            wanted = floor(rounds * self.share * width + SLACK)
        else:
            wanted = before + max(1, floor(self.share * present + SLACK))
        return max(0, min(wanted, self.in_all(width)) - before)

    def in_all(self, width: int) -> int:
        """How many units of a layer may go in all."""
        if self.target is None:
            return width - 1
        return min(ceil(self.target * width - SLACK), width - 1)

    def are_full(self, widths: Mapping[str, int], present: Mapping[str, int]) -> bool:
        """Whether the target is reached in every layer; False where there is none."""
        return self.target is not None and all(
            width - present[name] >= self.in_all(width) for name, width in widths.items()
        )
