"""Contributions of units to what the next layer sums up."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist

from fxprune.observe.observer import Observer
from fxprune.observe.quotients import of_convolution, of_linear

Tensor = torch.Tensor


class Contribution(Observer):
    """How much each unit adds to what the next layer sums up.

    A layer's output j at sample and position f sums w_kj a_kf over its inputs k. Over all F samples and
    positions and all M outputs,

        C_avg(k) = 1/(F M) sum_f sum_j w_kj a_kf / sum_i w_ij a_if
        C_max(k) = max over j, f of    w_kj a_kf / sum_i w_ij a_if

    with absolute values |w_kj| |a_kf| unless `signed`. A quotient by 0 counts as 0. For a convolution the
    term of k is the sum over the window of the kernel; padding and all groups are as the layer has them.

    The F x M x N array is never made. C_avg is one product for the sums and one for their inverses. For C_max
    every quotient of k at f is bounded by

        max_j q_kjf <= |a_kf| max_j |w_kj| * max_j |1 / sum_i w_ij a_if|

    which costs next to nothing; the quotients themselves are worked out where the bound is above the largest one
    known, most often at a few places in a hundred, in pieces (`largest_quotients.py`). Exact but for rounding.

    Args:
        size: number of inputs of the layer.
        device: of the counters.
        signed: leave the signs on: terms may cancel, and quotients grow without bound.

    Attributes:
        total: buffer `[size]`, the sum of the quotients.
        largest: buffer `[size]`, the largest quotient.
    """

    stat = "contribution"
    total: Tensor
    largest: Tensor

    def __init__(
        self,
        size: int | None = None,
        device: torch.device | str | None = None,
        *,
        signed: bool = False,
    ) -> None:
        super().__init__(size, device)
        self.signed = signed

    def start(self) -> dict[str, Tensor]:
        return {
            "total": torch.zeros(1, dtype=torch.float64),
            "largest": torch.full((1,), float("-inf"), dtype=torch.float64),
        }

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        """Counts a batch.

        Args:
            value: what the layer reads.
            axis: of its channels.
            layer: weight `[outputs, inputs / groups, *kernel]`; for a convolution its stride, padding
                and dilation too.
        """
        assert axis is not None
        weight, *window = layer
        exact = torch.promote_types(value.dtype, torch.float32)
        with torch.autocast(value.device.type, enabled=False):
            a, w = value.to(exact), weight.detach().to(exact)
            if not self.signed:
                a, w = a.abs(), w.abs()
            if window:
                self._add(*of_convolution(a, w, self.largest, *window, signed=self.signed))
            else:
                rows = a.movedim(axis, -1).flatten(0, -2)
                self._add(*of_linear(rows, w, self.largest, signed=self.signed))

    def _add(self, total: Tensor, largest: Tensor, terms: int) -> None:
        self.total += total
        self.largest.copy_(torch.maximum(self.largest, largest))
        self.seen += terms

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        self._add(*(getattr(other, n).to(self.seen.device) for n in ("total", "largest", "seen")))
        return self

    def unite(self) -> None:
        dist.all_reduce(self.seen)
        dist.all_reduce(self.total)
        dist.all_reduce(self.largest, dist.ReduceOp.MAX)

    def statistics(self) -> dict[str, Tensor]:
        nothing = torch.full_like(self.largest, float("nan"))
        largest = torch.where(self.seen > 0, self.largest, nothing)
        return {"average": self.total / self.seen, "largest": largest}
