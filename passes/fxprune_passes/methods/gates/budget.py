"""The price at which a network comes down to a wished cost while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fxprune.graph.gate import Gate
from fxprune.graph.program import Program
from fxprune_passes.methods.gates.budget_settling import settle_to_share
from fxprune_passes.methods.gates.cost_share import CostShare, Metric
from fxprune_passes.methods.gates.running_differences import RunningDifferences
from fxprune_passes.methods.gates.settling import Measured
from fxprune_passes.methods.gates.theta_gradients import Estimate
from fxprune_passes.methods.method import check_options

Tensor = torch.Tensor
Weight = Callable[[Tensor], float]

# The share of the learning phase in which the target comes down; then it stays, and gates decide.
DESCENT = 0.7
# A network is brought to a latency at most so often, each time behind a measurement of the last one.
MEASURED = 4
# Thetas follow the linearised cost for so many steps.
REFRESH = 10


class Budget:
    """Holds thetas to a target for the expected cost, which comes down to a wished share.

    The Lagrangian of `E[J]` under `E[cost] / cost_0 <= target` is
    `E[J] + price (E[cost] / cost_0 - target)`: each theta pays

        c = price * weight * d(E[cost] / cost_0)/dtheta.

    A dual ascent would raise the price by its violation and let thetas follow. Here the price of each step is the
    least one, 0 or more, at which the thetas after the step meet the target (the cost linearised): the multiplier
    of the projection onto the budget, found by bisection (**a reconstruction**). The target falls linearly from the
    cost at the start to `keep` in the first 70 % of the learning phase, so that the price starts small.

    Args:
        program: the network at the start.
        keep: the wished share of the cost, above 0 and below 1.
        metric: what costs, see `CostShare`.

    Attributes:
        price: the running mean of the prices of the last steps.
    """

    def __init__(self, program: Program, keep: float, metric: Metric) -> None:
        check_options(
            ("keep", keep, 0 < keep < 1, "above 0 and below 1"),
            ("metric", metric, metric in ("macs", "params", "latency"), "macs, params or latency"),
        )
        self.keep = keep
        self.cost = CostShare(program, metric)
        self.price = 0.0
        self.top: float | None = None
        self._age, self._share = 0, 1.0
        self._slopes: dict[str, Tensor] = {}

    def share(self, program: Program, found: Mapping[str, Gate]) -> float:
        """The expected share of the cost at the present thetas."""
        with torch.no_grad():
            return float(self.cost(program, {p: g.theta for p, g in found.items()}))

    def slopes(self, program: Program, found: Mapping[str, Gate]) -> dict[str, Tensor]:
        """The derivatives of the share by gate path, shaped like theta."""
        if not found:
            return {}
        with torch.enable_grad():
            thetas = {p: g.theta.detach().clone().requires_grad_() for p, g in found.items()}
            share = self.cost(program, thetas)
            slopes = torch.autograd.grad(share, list(thetas.values()), allow_unused=True)
        self._share = float(share.detach())
        return {
            path: torch.zeros_like(theta) if slope is None else slope
            for (path, theta), slope in zip(thetas.items(), slopes, strict=True)
        }

    def costs(
        self, program: Program, found: Mapping[str, Gate], weight: Weight
    ) -> dict[str, Tensor]:
        """The cost of each theta at the present price."""
        return {
            path: self.price * weight(slope) * slope
            for path, slope in self.slopes(program, found).items()
        }

    def learn(
        self,
        program: Program,
        found: Mapping[str, Gate],
        estimates: Mapping[str, Estimate],
        rates: tuple[float, float],
        weight: Weight,
        progress: float,
    ) -> None:
        """Takes a step along the estimates of the losses, and finds the price at which it meets the target.

        Args:
            program: the network.
            found: its gates.
            estimates: of the differences of their losses.
            rates: the step sizes for branches and for units.
            weight: the factor of the price for the gate of a theta.
            progress: the part of the learning phase that is over, 0 to 1.
        """
        self.cost.measure(program)
        moved = {path: gate.theta.detach() for path, gate in found.items()}
        for path, one in estimates.items():
            theta = moved[path]
            moved[path] = theta - rates[bool(theta.dim())] * one.times * one.difference

        def rate(theta: Tensor) -> float:
            return rates[bool(theta.dim())] * weight(theta)

        self.step(program, found, moved, rate, progress)

    def settle(
        self, program: Program, found: Mapping[str, Gate], worth: Measured | RunningDifferences
    ) -> None:
        """Brings gates at 0 or 1 to the wished share, see `settle_to_share`.

        A latency is measured then, and gates are flipped again where the measurement says something else; the
        gates that came nearest stay.
        """
        self.cost.measure(program)
        tried: list[tuple[float, float, list[Tensor]]] = []
        for _ in range(MEASURED if self.cost.metric == "latency" else 1):
            settle_to_share(
                found,
                self.keep,
                lambda: self.share(program, found),
                lambda: self.slopes(program, found),
                worth,
            )
            thetas = [gate.theta.clone() for gate in found.values()]
            if any(all(map(torch.equal, thetas, old)) for _, _, old in tried):
                break
            self.cost.correct(program)
            tried.append((abs(self.share(program, found) - self.keep), self.cost.stretch, thetas))
        _, self.cost.stretch, nearest = min(tried, key=lambda one: one[0])
        for gate, theta in zip(found.values(), nearest, strict=True):
            gate.set(theta)

    @torch.no_grad()
    def step(
        self,
        program: Program,
        found: Mapping[str, Gate],
        moved: Mapping[str, Tensor],
        rate: Weight,
        progress: float,
    ) -> None:
        """Sets the thetas after a step: as the losses moved them, lowered by the least price that meets the target.

        Args:
            program: the network.
            found: its gates.
            moved: by gate path, thetas after a step along the estimates of the losses alone.
            rate: gives for a theta the factor by which a price lowers it, relative to the slope of the cost.
            progress: the part of the learning phase that is over, 0 to 1.
        """
        if self._age % REFRESH == 0 or self._slopes.keys() != found.keys():
            self._age, self._slopes = 0, self.slopes(program, found)
        self._age += 1
        if self.top is None:
            self.top = self._share
        target = self.top + (self.keep - self.top) * min(1.0, progress / DESCENT)
        order = list(found)
        old = torch.cat([found[p].theta.view(-1) for p in order]).double()
        free = torch.cat([moved[p].view(-1) for p in order]).double()
        slope = torch.cat([self._slopes[p].view(-1) for p in order]).double()
        pull = torch.cat([rate(self._slopes[p]) * self._slopes[p].view(-1) for p in order]).double()

        def after(price: float) -> Tensor:
            return (free - price * pull).clamp(0, 1)

        def excess(price: float) -> float:
            return self._share - target + float(slope @ (after(price) - old))

        price = least_price(excess, 1 / float(pull.max().clamp(min=1e-12)))
        new = after(price)
        self._share += float(slope @ (new - old))
        self.price += (price - self.price) / 50
        parts = torch.split(new, [found[p].theta.numel() for p in order])
        for path, part in zip(order, parts, strict=True):
            found[path].theta.copy_(part.view_as(found[path].theta))

    def follow(self, before: Mapping[str, Tensor], found: Mapping[str, Gate]) -> None:
        """Follows a removal, see `CostShare.follow`."""
        self._age = 0
        self.cost.follow(before, found)

    def state_dict(self) -> dict[str, Any]:
        """What changes during training."""
        slopes = {path: slope.clone() for path, slope in self._slopes.items()}
        return {
            "price": self.price,
            "top": self.top,
            "age": self._age,
            "share": self._share,
            "slopes": slopes,
            "cost": self.cost.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.price, self.top = state["price"], state["top"]
        self._age, self._share = state["age"], state["share"]
        self._slopes = {path: slope.clone() for path, slope in state["slopes"].items()}
        self.cost.load_state_dict(state["cost"])


def least_price(excess: Callable[[float], float], scale: float) -> float:
    """The least price, 0 or more, at which a decreasing excess is not positive; by bisection to 1e-4 of the price.

    Where no price reaches that, the one at which every theta is 0.

    Args:
        excess: by how much the cost exceeds its target at a price.
        scale: the price at which the dearest theta falls from 1 to 0.
    """
    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, scale * 1e-3
    while excess(high) > 0:
        if high > 1e6 * scale:
            return high
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
