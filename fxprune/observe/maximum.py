"""Maxima of units."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist

from fxprune.observe.observer import Observer, others

Tensor = torch.Tensor


class Maximum(Observer):
    """Observes the largest value of each unit.

    Attributes:
        largest: buffer `[size]`; minus infinity before any data.
    """

    stat = "max"
    largest: Tensor

    def start(self) -> dict[str, Tensor]:
        return {"largest": torch.full((1,), float("-inf"), dtype=torch.float64)}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        dims = others(value, axis)
        new = value.amax(dims) if dims else value
        self.largest.copy_(torch.maximum(self.largest, new))
        self.seen += value.numel() // self.largest.numel()

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        self.largest.copy_(torch.maximum(self.largest, other.largest.to(self.largest.device)))
        self.seen += other.seen.to(self.seen.device)
        return self

    def unite(self) -> None:
        dist.all_reduce(self.seen)
        dist.all_reduce(self.largest, dist.ReduceOp.MAX)

    def statistics(self) -> dict[str, Tensor]:
        nothing = torch.full_like(self.largest, float("nan"))
        return {"max": torch.where(self.seen > 0, self.largest, nothing)}
