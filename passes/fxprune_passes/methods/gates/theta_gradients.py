"""Estimates the gradient of a loss with respect to gate probabilities from a single sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from fxprune.graph.gate import Gate
from fxprune.process.random_state import random_state
from fxprune.training import TrainingError, all_reduced
from fxprune_passes.methods.gates.unchanged import unchanged
from fxprune_passes.methods.method import Loss

Tensor = torch.Tensor
Estimator = Literal["two-pass", "score", "first-order", "trapezoid"]
Pick = Literal["random", "cyclic"]

# The estimators that read dJ/dxi from the backward pass.
SLOPES: tuple[Estimator, ...] = ("first-order", "trapezoid")
# The least probability by which a slope is divided.
LEAST = 0.05

# The weight of past losses in the running baseline of the score function.
DECAY = 0.9


@dataclass(frozen=True)
class Step:
    """The state of a training step after its backward pass.

    Attributes:
        module: the network.
        value: its loss at the sampled gates `[]`.
        loss: the function that returned it.
        scale: the factor by which the gradients were scaled.
        may_overflow: whether steps with gradients that are not finite are skipped.
    """

    module: nn.Module
    value: Tensor
    loss: Loss
    scale: float = 1.0
    may_overflow: bool = False


@dataclass(frozen=True)
class Estimate:
    """What one step says about a gate.

    Attributes:
        difference: the estimate of `E[J | xi_l = 1] - E[J | xi_l = 0]`, shaped like theta.
        times: how many steps it stands for, shaped like theta or one number: B where B gates take turns, 0 for
            a gate whose turn it is not.
    """

    difference: Tensor
    times: Tensor | float = 1.0

    def as_often(self, factor: int) -> Estimate:
        """The same, for so many times the steps."""
        return replace(self, times=factor * self.times)

    def plus(self, cost: Tensor) -> Tensor:
        """The estimate of the gradient of the objective: the difference and its cost, as often as it counts."""
        return self.times * (self.difference + cost)


class ThetaGradients:
    """Estimates `E[J | xi_l = 1] - E[J | xi_l = 0]` from one sample of xi.

    - two-pass: `(2 xi_l - 1) (J(xi) - J(xi with xi_l flipped))`, exact in xi_l, for one l in each step; it needs
      another forward pass without gradients, on the same random numbers. The B gates take turns: the estimate
      of the chosen gate counts B times, including c_l, and it says nothing of the other gates. This is unbiased;
      `RunningDifferences.controlled` takes most of its variance away. It is also defined at theta 0 and 1.
    - score: `(J(xi) - b) (xi_l - theta_l) / (theta_l (1 - theta_l))`, where b is the running mean of the previous
      losses (REINFORCE, Williams 1992): unbiased for 0 < theta_l < 1, with a large variance. At 0 and 1 it is 0.
    - first-order: `dJ/dxi_l` at the sampled xi, which the backward pass provides (Bengio et al., arXiv 1308.3432).
      Exact where J is affine in xi_l, otherwise biased: a reconstruction of what the papers leave open. At xi = 1
      it is the sum of w dJ/dw over the weights w that a gate multiplies, which training drives to 0: it does not
      see what a trained branch or unit is worth.
    - trapezoid (a reconstruction): `dJ/dxi_l / (2 theta_l)` where xi_l = 1 and `dJ/dxi_l / (2 (1 - theta_l))` where
      xi_l = 0, at the cost of first-order. Its expectation is `(J'(0) + J'(1)) / 2`, the trapezoidal rule for the
      integral of J' from 0 to 1; exact where J is quadratic in xi_l. Denominators are at least 2 * 0.05, so that
      a draw of small probability makes no leap; within 0.05 of an end, the slope at the other end counts less
      accordingly. At theta 1 only xi = 1 is drawn, and it estimates J'(1) / 2; at theta 0, J'(0) / 2. So a gate
      at 1 sees half of the blind slope, and its cost lowers it until it is drawn at 0 again.

    Losses and gradients are averaged over processes.

    Args:
        pick: how two-pass chooses the gate of a step: `random`, or `cyclic`, one after the other.
        generator: chooses the gates; the same on every process.

    Attributes:
        baseline: b; None before the first loss.
        turn: the number of turns taken so far.
    """

    def __init__(self, pick: Pick, generator: torch.Generator) -> None:
        self.pick, self.generator = pick, generator
        self.baseline: Tensor | None = None
        self.turn = 0
        self._random: dict[str, Any] | None = None

    def begin(self, *, repeats: bool) -> None:
        """Runs before the forward pass of a step: keeps the random state if the step needs a second pass."""
        self._random = random_state() if repeats else None

    def estimate(
        self, estimator: Estimator, group: Mapping[str, Gate], step: Step
    ) -> dict[str, Estimate]:
        """Estimates the differences of a group of gates.

        Returns:
            The estimates by gate path; without the gates that are not estimated in this step.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        if estimator == "two-pass":
            return self._two_pass(group, step)
        if estimator == "score":
            return self._score(group, step)
        return _from_slopes(group, step, trapezoid=estimator == "trapezoid")

    def _two_pass(self, group: Mapping[str, Gate], step: Step) -> dict[str, Estimate]:
        count = sum(gate.theta.numel() for gate in group.values())
        path, at = _locate(group, self._next(count))
        gate = group[path]
        one = gate.sample.view(-1)[at]
        drawn = one.clone()
        one.copy_(1 - drawn)
        other = self._again(step)
        one.copy_(drawn)
        difference = (2 * drawn - 1) * mean_of_all(step.value - other).to(drawn.dtype)
        check_finite(difference, f"the loss with {path} flipped")
        times = torch.zeros_like(gate.theta)
        times.view(-1)[at] = count
        return {path: Estimate(difference.expand_as(times), times)}

    def _next(self, count: int) -> int:
        """The number of the gate whose turn it is."""
        if self.pick == "random":
            return int(torch.randint(count, (), generator=self.generator))
        self.turn += 1
        return (self.turn - 1) % count

    @torch.no_grad()
    def _again(self, step: Step) -> Tensor:
        """The loss on the random numbers of the forward pass of this step; no state of the network changes."""
        assert self._random is not None
        with unchanged(step.module, self._random):
            return step.loss(step.module).detach()

    def _score(self, group: Mapping[str, Gate], step: Step) -> dict[str, Estimate]:
        exact = torch.promote_types(step.value.dtype, torch.float32)
        value, baseline = mean_of_all(step.value.to(exact)), self.baseline
        check_finite(value, "the loss")
        self.baseline = value if baseline is None else DECAY * baseline + (1 - DECAY) * value
        if baseline is None:  # with the first loss alone there is no baseline to compare it with
            return {}
        found = {}
        for path, gate in group.items():
            theta = gate.theta.detach()
            score = (gate.sample - theta) / (theta * (1 - theta))
            inside = (theta > 0) & (theta < 1)
            found[path] = Estimate(torch.where(inside, score, 0) * (value - baseline))
        return found


def _from_slopes(group: Mapping[str, Gate], step: Step, *, trapezoid: bool) -> dict[str, Estimate]:
    flat = (
        mean_of_all(torch.cat([_gradient(gate).view(-1) for gate in group.values()])) / step.scale
    )
    if step.may_overflow and not bool(torch.isfinite(flat).all()):
        return {}  # the scaler skips this step for the weights, too
    check_finite(flat, "the gradient in theta")
    if trapezoid:
        drawn = torch.cat([gate.sample.view(-1) for gate in group.values()])
        theta = torch.cat([gate.theta.detach().view(-1) for gate in group.values()])
        flat = flat / (2 * torch.where(drawn > 0.5, theta, 1 - theta).clamp(min=LEAST))
    sizes = [gate.theta.numel() for gate in group.values()]
    parts = zip(group.items(), torch.split(flat, sizes), strict=True)
    return {path: Estimate(part.view_as(gate.theta)) for (path, gate), part in parts}


def _locate(group: Mapping[str, Gate], number: int) -> tuple[str, int]:
    """The gate, and the position in it, that a number counted through all gates denotes."""
    for path, gate in group.items():
        if number < gate.theta.numel():
            return path, number
        number -= gate.theta.numel()
    raise AssertionError(number)


def _gradient(gate: Gate) -> Tensor:
    return torch.zeros_like(gate.theta) if gate.theta.grad is None else gate.theta.grad


def mean_of_all(value: Tensor) -> Tensor:
    """The mean over all processes."""
    if not dist.is_initialized():
        return value
    return all_reduced({"value": value})["value"] / dist.get_world_size()


def check_finite(value: Tensor, what: str) -> None:
    """Checks a loss or a gradient that thetas would follow.

    Raises:
        TrainingError: it is not finite.
    """
    if not bool(torch.isfinite(value).all()):
        raise TrainingError(
            f"{what} is not finite",
            why="a step in theta along it would close or open gates arbitrarily",
            do="check the learning rate and the data",
        )
