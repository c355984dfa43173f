"""How often each unit is active."""

from __future__ import annotations

from math import log
from typing import Any

import torch

from fxprune.observe.observer import Summed, others

Tensor = torch.Tensor


class OnFraction(Summed):
    """Observes how often each unit is on, that is above 0, and the entropy that follows from it.

    Let p be the fraction of values above 0, over samples and positions. The entropy of a unit in bits is
    H = -p log2 p - (1 - p) log2 (1 - p) (entropy-guided pruning, arXiv 2308.06619).

    Attributes:
        on: buffer `[size]`, how many values of each unit were above 0.
    """

    stat = "on-fraction"
    on: Tensor

    def start(self) -> dict[str, Tensor]:
        return {"on": torch.zeros(1, dtype=torch.int64)}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        size = value.numel()
        each = size // self.on.numel()
        self.on += _count_above(value, others(value, axis), each)
        self.seen += each

    def fraction(self) -> Tensor:
        """Returns the fraction of values above 0 of each unit, `[size]`, in float64."""
        return self.on.double() / self.seen

    def entropy(self) -> Tensor:
        """Returns the entropy of each unit in bits, `[size]`; 0 for a unit that is always on or always off."""
        p = self.fraction()
        return 0 - (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / log(2)

    def layer_entropy(self, *, plain: bool = False) -> float:
        """Returns the mean entropy, in bits, of the units that are sometimes on and sometimes off; 0 if there are none.

        Args:
            plain: take the mean over all units instead.
        """
        entropy = self.entropy().reshape(-1)
        if not plain:
            mixed = (self.on > 0) & (self.on < self.seen)
            entropy = entropy[mixed.reshape(-1)]
        return float(entropy.mean()) if entropy.numel() else 0.0

    def statistics(self) -> dict[str, Tensor]:
        return {"on": self.on, "on-fraction": self.fraction(), "entropy": self.entropy()}


def _count_above(value: Tensor, dims: list[int], each: Any) -> Tensor:
    """Counts the values above 0 of each unit; `each` is the number of values per unit."""
    if isinstance(each, int) and each <= 2**24 and not torch.compiler.is_compiling():
        # Sums of ones in float32 are exact up to there, and take a third of the time of integers.
        above = torch.empty_like(value, dtype=torch.float32)
        return torch.gt(value, 0, out=above).sum(dims).to(torch.int64)
    # A free size is not asked: torch.export would bound the batch by the answer.
    short = isinstance(each, int) and each < 2**31
    return (value > 0).sum(dims, dtype=torch.int32 if short else torch.int64)
