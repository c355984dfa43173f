"""What is known of the constant units of a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Constant:
    """The constant units along an axis of a value.

    Attributes:
        axis: the axis of the units.
        values: `[size]` in float64, the number of each unit; NaN for a unit that varies.
    """

    axis: int
    values: torch.Tensor

    @property
    def any(self) -> bool:
        """Whether at least one unit is constant."""
        return not bool(self.values.isnan().all())

    def zeros(self) -> Constant:
        """Only the units that are 0."""
        return Constant(self.axis, torch.where(self.values == 0, 0.0, float("nan")).double())
