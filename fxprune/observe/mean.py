"""Means of units."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.observe.observer import Summed, others

Tensor = torch.Tensor


class Mean(Summed):
    """Observes the mean value of each unit.

    Attributes:
        total: buffer `[size]`, the sum of the values of each unit.
    """

    stat = "mean"
    total: Tensor

    def start(self) -> dict[str, Tensor]:
        return {"total": torch.zeros(1, dtype=torch.float64)}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        self.total += value.sum(others(value, axis), dtype=torch.float64)
        self.seen += value.numel() // self.total.numel()

    def statistics(self) -> dict[str, Tensor]:
        return {"mean": self.total / self.seen}
