"""Covariances of units."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist

from fxprune.observe.observer import Observer

Tensor = torch.Tensor


class Covariance(Observer):
    """Observes the means and covariances of the units; moments of different batches merge exactly.

    The merge follows Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979): S = S_a + S_b + d d^T n_a n_b / n, where d is the difference of the means.

    Attributes:
        average: buffer `[size]`, the mean of each unit.
        scatter: buffer `[size, size]`, the sum of products of deviations from the means.
    """

    stat = "covariance"
    average: Tensor
    scatter: Tensor

    def start(self) -> dict[str, Tensor]:
        zeros = torch.zeros(1, 1, dtype=torch.float64)
        return {"average": zeros[0], "scatter": zeros}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        size = self.average.numel()
        rows = value if axis is None else value.movedim(axis, -1)
        rows = rows.reshape(-1, size).to(self.average.dtype)
        mean = rows.mean(0)
        rows = rows - mean
        self._add(rows.shape[0], mean, rows.T @ rows)

    def _add(self, count: Any, mean: Tensor, scatter: Tensor) -> None:
        """Merges moments into the counters; counts are numbers or tensors."""
        total = self.seen + count
        away = (mean - self.average.reshape(-1)).reshape(-1)
        share = count / total.clamp(min=1).to(self.average.dtype)
        both = scatter + torch.outer(away, away) * (self.seen * share)
        self.scatter += both.reshape(self.scatter.shape)
        self.average += (away * share).reshape(self.average.shape)
        self.seen.copy_(total)

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        seen, average, scatter = (
            b.to(self.seen.device) for b in (other.seen, other.average, other.scatter)
        )
        self._add(seen, average.reshape(-1), scatter.reshape(average.numel(), -1))
        return self

    def unite(self) -> None:
        seen, own = self.seen.clone(), self.average.clone()
        total = own * seen
        dist.all_reduce(self.seen)
        dist.all_reduce(total)
        self.average.copy_(total / self.seen.clamp(min=1))
        away = (own - self.average).reshape(-1)
        self.scatter += (torch.outer(away, away) * seen).reshape(self.scatter.shape)
        dist.all_reduce(self.scatter)

    def covariance(self) -> Tensor:
        """Returns the covariances of the observed data, `[size, size]`: the scatter divided by the count."""
        return self.scatter / self.seen

    def statistics(self) -> dict[str, Tensor]:
        covariance = self.covariance()
        variance = covariance.diagonal() if covariance.dim() else covariance
        mean = torch.where(self.seen > 0, self.average, float("nan"))
        return {"mean": mean, "variance": variance, "covariance": covariance}
