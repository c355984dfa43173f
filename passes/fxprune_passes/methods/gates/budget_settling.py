"""Brings a settled network to a wished cost by flipping the gates that matter least for what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fxprune.graph.gate import Gate
from fxprune_passes.methods.gates.running_differences import RunningDifferences
from fxprune_passes.methods.gates.settling import Measured, unit_differences

Tensor = torch.Tensor
# How far from the wished share a network may be, relative to it.
CLOSE = 0.01
# Rounds of unit flips; the cost is linearised in each.
ROUNDS = 20


@torch.no_grad()
def settle_to_share(
    found: Mapping[str, Gate],
    keep: float,
    share: Callable[[], float],
    slopes: Callable[[], Mapping[str, Tensor]],
    worth: Measured | RunningDifferences,
) -> None:
    """Flips gates that are at 0 or 1 until the cost is at `keep`, as near as they allow.

    Closing while the cost is above `keep`, opening while it is below. Branches first, one after the other: of
    those whose flip brings the cost nearer to `keep`, the one whose closing raises the loss the least for what it saves
    (whose opening lowers it the most). Then units fill the rest, in the same order.

    Args:
        found: the gates, each theta at 0 or 1.
        keep: the wished share of the cost.
        share: returns the share at the present thetas.
        slopes: returns the derivatives of the share by gate path.
        worth: measures losses, or has the running means of differences.
    """
    branches = {p: g for p, g in found.items() if not g.theta.dim()}
    while _far(now := share(), keep):
        rated = {}
        for path, gate in branches.items():
            if bool(gate.theta) == (now > keep):
                old = float(gate.theta)
                gate.set(1 - old)
                other = share()
                if abs(other - keep) < abs(now - keep):
                    change = _branch_change(path, old, gate, worth)
                    rated[path] = change / abs(other - now)
                gate.set(old)
        if not rated:
            break
        best = min(rated, key=rated.__getitem__)
        branches[best].set(1 - branches[best].theta)
    units = {p: g for p, g in found.items() if g.theta.dim()}
    if units and _far(share(), keep):
        _fill(units, keep, share, slopes, worth)


def _far(share: float, keep: float) -> bool:
    return abs(share - keep) > CLOSE * keep


def _branch_change(
    path: str, old: float, gate: Gate, worth: Measured | RunningDifferences
) -> float:
    """The change of the loss by a flip of a gate that has been made."""
    if isinstance(worth, RunningDifferences):
        difference = float(worth.means[path]) if path in worth.means else 0.0
        return (1 - 2 * old) * difference
    after = worth.value()
    gate.set(old)
    return after - worth.value()


def _fill(
    units: Mapping[str, Gate],
    keep: float,
    share: Callable[[], float],
    slopes: Callable[[], Mapping[str, Tensor]],
    worth: Measured | RunningDifferences,
) -> None:
    """Flips units in the order of their worth for their cost."""
    differences = (
        unit_differences(units, worth)
        if isinstance(worth, Measured)
        else {p: worth.means.get(p, torch.zeros_like(g.theta)) for p, g in units.items()}
    )
    for _ in range(ROUNDS):
        gap = share() - keep
        prices = slopes()
        theta = torch.cat([g.theta.view(-1) for g in units.values()]).double()
        price = torch.cat([prices[p].view(-1) for p in units]).double()
        change = torch.cat([differences[p].view(-1) for p in units]).double() * (1 - 2 * theta)
        can = (theta > 0.5) == (gap > 0)
        rated = torch.where(can & (price > 0), change / price.clamp(min=1e-12), float("inf"))
        order = rated.argsort()[: int(torch.isfinite(rated).sum())]
        # All that fit in the gap, and one more where that comes nearer.
        sums = price[order].cumsum(0)
        count = int((sums <= abs(gap)).sum())
        if count < len(order) and float(price[order[count]]) < 2 * (
            abs(gap) - (float(sums[count - 1]) if count else 0.0)
        ):
            count += 1
        if not _far(gap + keep, keep) or not count:
            return
        theta[order[:count]] = 1 - theta[order[:count]]
        parts = torch.split(theta, [g.theta.numel() for g in units.values()])
        before = [g.theta.clone() for g in units.values()]
        for gate, part in zip(units.values(), parts, strict=True):
            gate.set(part.to(gate.theta.dtype))
        if abs(share() - keep) >= abs(gap):
            for gate, old in zip(units.values(), before, strict=True):
                gate.set(old)
            return
