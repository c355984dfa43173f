"""Decides which gates stay open for good: by measuring on data, or by the running means of estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxprune.graph.gate import Gate
from fxprune.process.random_state import random_state
from fxprune_passes.methods.gates.running_differences import RunningDifferences
from fxprune_passes.methods.gates.theta_gradients import check_finite, mean_of_all
from fxprune_passes.methods.gates.unchanged import unchanged
from fxprune_passes.methods.method import Loss

Tensor = torch.Tensor
Costs = Callable[[], Mapping[str, Tensor]]

# Units are decided in so many parts, one after the other.
PARTS = 10


class Measured:
    """Measures the loss of a network at chosen gates, on data.

    The network stays in train mode. Norms then use the statistics of the batches that are measured, which follow
    the gates; running statistics were gathered while gates were drawn, and are those of none of the networks
    that are compared. All buffers are restored, and every measurement is made on the same random numbers.

    Args:
        module: the network in train mode.
        loss: returns the mean loss on the data `[]`.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self.module, self.loss = module, loss
        self.random: dict[str, Any] = random_state()

    @torch.no_grad()
    def value(self) -> float:
        """The loss at the present samples, averaged over processes.

        Raises:
            TrainingError: it is not finite.
        """
        with unchanged(self.module, self.random):
            value = self.loss(self.module).detach()
        value = mean_of_all(value.to(torch.promote_types(value.dtype, torch.float32)))
        check_finite(value, "the loss on the data to settle on")
        return float(value)

    def slopes(self, found: Mapping[str, Gate]) -> dict[str, Tensor]:
        """The derivatives of the loss in the multipliers of gates, by path and shaped like theta.

        Raises:
            TrainingError: one is not finite.
        """
        with unchanged(self.module, self.random), _differentiable(found), torch.enable_grad():
            thetas = [gate.theta for gate in found.values()]
            slopes = torch.autograd.grad(self.loss(self.module), thetas, allow_unused=True)
        filled = [
            torch.zeros_like(theta) if slope is None else slope
            for theta, slope in zip(thetas, slopes, strict=True)
        ]
        flat = mean_of_all(torch.cat([slope.view(-1) for slope in filled]))
        check_finite(flat, "a derivative of the loss on the data to settle on")
        parts = torch.split(flat, [theta.numel() for theta in thetas])
        return {p: part.view_as(t) for p, part, t in zip(found, parts, thetas, strict=True)}


@contextmanager
def _differentiable(found: Mapping[str, Gate]) -> Iterator[None]:
    before = [(gate, gate.estimator, gate.theta.requires_grad) for gate in found.values()]
    for gate in found.values():
        gate.estimator = "straight-through"
        gate.theta.requires_grad_()
    try:
        yield
    finally:
        for gate, estimator, requires in before:
            gate.estimator = estimator
            gate.theta.requires_grad_(requires)


@torch.no_grad()
def settle_by_means(found: Mapping[str, Gate], running: RunningDifferences, costs: Costs) -> None:
    """Sets each undecided theta by the sign of the running mean of its difference plus its cost.

    A theta without an estimate goes to the nearer end.
    """
    prices = costs()
    for path, gate in found.items():
        opened = gate.theta >= 0.5
        if path in running.means:
            worth = running.means[path] + prices[path].to(gate.theta) < 0
            opened = torch.where(running.counts[path] > 0, worth, opened)
        gate.set(torch.where(undecided(gate), opened.to(gate.theta.dtype), gate.theta))


@torch.no_grad()
def settle_by_data(found: Mapping[str, Gate], measured: Measured, costs: Costs) -> None:
    """Sets each undecided theta to 0 or 1 by what it is worth on data.

    Every theta starts at its nearer end. Then branches, one after the other: of all single flips, the one that
    lowers the loss plus costs the most, measured again after each flip, until none lowers it; a gate flips once
    at most. Then units, a tenth of each gate at a time: half the sum of the slopes at both of their ends, which is
    their difference where the loss is quadratic, plus the cost decides.

    Args:
        found: the gates.
        measured: evaluates the network.
        costs: returns the costs at the present thetas.
    """
    branches = [g for g in found.values() if not g.theta.dim() and bool(undecided(g))]
    paths = {gate: path for path, gate in found.items()}
    units = {p: undecided(g) for p, g in found.items() if g.theta.dim()}
    for gate in found.values():
        gate.set(torch.where(undecided(gate), (gate.theta >= 0.5).to(gate.theta), gate.theta))
    while branches:
        gains, now, prices = {}, measured.value(), costs()
        for gate in branches:
            old = float(gate.theta)
            gate.set(1 - old)
            gains[gate] = measured.value() - now + (1 - 2 * old) * float(prices[paths[gate]])
            gate.set(old)
        best = min(branches, key=gains.__getitem__)
        if gains[best] >= 0:
            break
        best.set(1 - best.theta)
        branches.remove(best)
    parts = _parts(units)
    for part in range(PARTS):
        masks = {path: own == part for path, own in parts.items()}
        if any(bool(mask.any()) for mask in masks.values()):
            own, prices = {p: found[p] for p in units}, costs()
            differences = _flipped(own, masks, measured, measured.slopes(own))
            for path, mask in masks.items():
                theta = found[path].theta
                worth = differences[path] + prices[path].to(theta) < 0
                found[path].set(torch.where(mask, worth.to(theta), theta))


@torch.no_grad()
def unit_differences(found: Mapping[str, Gate], measured: Measured) -> dict[str, Tensor]:
    """Half the sum of the slopes at both ends of each unit, by gate path; other units stay at their thetas, 0 or 1.

    A tenth of the units at a time goes to the other end.
    """
    parts = _parts({p: torch.ones_like(g.theta, dtype=torch.bool) for p, g in found.items()})
    first = measured.slopes(found)
    differences = {path: torch.zeros_like(slope) for path, slope in first.items()}
    for part in range(PARTS):
        masks = {path: own == part for path, own in parts.items()}
        if any(bool(mask.any()) for mask in masks.values()):
            for path, new in _flipped(found, masks, measured, first).items():
                differences[path] = torch.where(masks[path], new, differences[path])
    return differences


def _parts(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each unit of the masks the number of its part, else -1.

    They are counted through all gates, so that few units of small gates go at once.
    """
    count, parts = 0, {}
    for path, mask in masks.items():
        parts[path] = ((count + mask.cumsum(0)) % PARTS).masked_fill(~mask, -1)
        count += int(mask.sum())
    return parts


def _flipped(
    found: Mapping[str, Gate],
    masks: Mapping[str, Tensor],
    measured: Measured,
    first: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Half the sum of given slopes and of those with some units at their other ends; thetas are restored."""
    before = {path: gate.theta.clone() for path, gate in found.items()}
    for path, mask in masks.items():
        found[path].set(torch.where(mask, 1 - before[path], before[path]))
    second = measured.slopes(found)
    for path, gate in found.items():
        gate.set(before[path])
    return {path: (first[path] + slope) / 2 for path, slope in second.items()}


def undecided(gate: Gate) -> Tensor:
    """Which thetas of a gate are neither 0 nor 1, as booleans shaped like theta."""
    theta = gate.theta.detach()
    return (theta > 0) & (theta < 1)
