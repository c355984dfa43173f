"""The contribution of each unit to the sums that the next layer computes."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist

from fxprune.observe.observer import Observer
from fxprune.observe.quotients import of_convolution, of_linear

Tensor = torch.Tensor


class Contribution(Observer):
    """Observes how much each input unit contributes to the sums that a layer computes.

    At sample and position f, output j of a layer is the sum of w_kj a_kf over its inputs k. Over all F
    samples and positions and all M outputs,

        C_avg(k) = 1/(F M) sum_f sum_j w_kj a_kf / sum_i w_ij a_if
        C_max(k) = max over j, f of    w_kj a_kf / sum_i w_ij a_if

    with absolute values |w_kj| |a_kf| in both sums unless `signed` is set. A quotient with denominator 0
    counts as 0. For a convolution, the term of input k is the sum over the kernel window, with the
    layer's own padding and groups.

    The array of F x M x N quotients is never stored. C_avg needs one product for the sums and one for
    their inverses. For C_max, every quotient of k at f is bounded by

        max_j q_kjf <= |a_kf| max_j |w_kj| * max_j |1 / sum_i w_ij a_if|

    which is cheap to compute. The quotients themselves are computed, in pieces, only where the bound
    exceeds the largest quotient known so far, usually at a few per cent of the places
    (`largest_quotients.py`). The result is exact up to rounding.

    Args:
        size: the number of inputs of the layer.
        device: the device of the counters.
        signed: keep the signs. Terms may then cancel, and quotients are unbounded.

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
            value: the input of the layer.
            axis: the axis of its channels.
            layer: the weight, `[outputs, inputs / groups, *kernel]`; for a convolution also its stride,
                padding and dilation.
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
