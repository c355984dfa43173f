"""Estimates the gradient of a loss with respect to gate probabilities from a single sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from fxprune.graph.gate import Gate
from fxprune.graph.leaf import Leaf
from fxprune.process.random_state import random_state, set_random_state
from fxprune.training import TrainingError, all_reduced
from fxprune_passes.methods.method import Loss

Tensor = torch.Tensor
Estimator = Literal["two-pass", "score", "first-order"]
Pick = Literal["random", "cyclic"]

# The weight of past losses in the running baseline of the score function.
DECAY = 0.9


@dataclass(frozen=True)
class Step:
    """The state of a training step after its backward pass.

    Attributes:
        module: the network.
        value: its loss at the sampled gates `[]`.
        loss: the function that returned it.
        costs: c by gate path, shaped like theta.
        scale: the factor by which the gradients were scaled.
        may_overflow: whether steps with gradients that are not finite are skipped.
    """

    module: nn.Module
    value: Tensor
    loss: Loss
    costs: Mapping[str, Tensor]
    scale: float = 1.0
    may_overflow: bool = False


class ThetaGradients:
    """Estimates `E[J | xi_l = 1] - E[J | xi_l = 0] + c_l` from one sample of xi.

    - two-pass: `(2 xi_l - 1) (J(xi) - J(xi with xi_l flipped))`, exact in xi_l, for one l in each step; it needs
      another forward pass without gradients, on the same random numbers. The B gates take turns: the derivative
      of the chosen gate, including c_l, is multiplied by B, and the other gates do not change. This is unbiased,
      and no gate falls by its cost alone between its turns. It is also defined at theta 0 and 1.
    - score: `(J(xi) - b) (xi_l - theta_l) / (theta_l (1 - theta_l))`, where b is the running mean of the previous
      losses (REINFORCE, Williams 1992): unbiased for 0 < theta_l < 1, with a large variance. At 0 and 1 it is c_l.
    - first-order: `dJ/dxi_l` at the sampled xi, which the backward pass provides (Bengio et al., arXiv 1308.3432).
      Exact where J is affine in xi_l, otherwise biased: a reconstruction of what the papers leave open.

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
    ) -> dict[str, Tensor]:
        """Estimates the gradients of a group of gates, including costs.

        Returns:
            The estimates by gate path, shaped like theta; without the gates that are not estimated in this step.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        if estimator == "two-pass":
            return self._two_pass(group, step)
        return self._score(group, step) if estimator == "score" else _first_order(group, step)

    def _two_pass(self, group: Mapping[str, Gate], step: Step) -> dict[str, Tensor]:
        count = sum(gate.theta.numel() for gate in group.values())
        path, at = _locate(group, self._next(count))
        gate = group[path]
        one = gate.sample.view(-1)[at]
        drawn = one.clone()
        one.copy_(1 - drawn)
        other = self._again(step)
        one.copy_(drawn)
        difference = (2 * drawn - 1) * _mean(step.value - other).to(drawn.dtype)
        _check_finite(difference, f"the loss with {path} flipped")
        found = torch.zeros_like(gate.theta)
        found.view(-1)[at] = count * (difference + step.costs[path].view(-1)[at])
        return {path: found}

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
        now = random_state()
        with _kept(step.module):
            set_random_state(self._random)
            try:
                return step.loss(step.module).detach()
            finally:
                set_random_state(now)

    def _score(self, group: Mapping[str, Gate], step: Step) -> dict[str, Tensor]:
        exact = torch.promote_types(step.value.dtype, torch.float32)
        value, baseline = _mean(step.value.to(exact)), self.baseline
        _check_finite(value, "the loss")
        self.baseline = value if baseline is None else DECAY * baseline + (1 - DECAY) * value
        if baseline is None:  # with the first loss alone there is no baseline to compare it with
            return {}
        found = {}
        for path, gate in group.items():
            theta = gate.theta.detach()
            score = (gate.sample - theta) / (theta * (1 - theta))
            inside = (theta > 0) & (theta < 1)
            found[path] = torch.where(inside, score, 0) * (value - baseline) + step.costs[path]
        return found


def _first_order(group: Mapping[str, Gate], step: Step) -> dict[str, Tensor]:
    flat = _mean(torch.cat([_gradient(gate).view(-1) for gate in group.values()])) / step.scale
    if step.may_overflow and not bool(torch.isfinite(flat).all()):
        return {}  # the scaler skips this step for the weights, too
    _check_finite(flat, "the gradient in theta")
    sizes = [gate.theta.numel() for gate in group.values()]
    parts = zip(group.items(), torch.split(flat, sizes), strict=True)
    return {path: part.view_as(gate.theta) + step.costs[path] for (path, gate), part in parts}


def _locate(group: Mapping[str, Gate], number: int) -> tuple[str, int]:
    """The gate, and the position in it, that a number counted through all gates denotes."""
    for path, gate in group.items():
        if number < gate.theta.numel():
            return path, number
        number -= gate.theta.numel()
    raise AssertionError(number)


def _gradient(gate: Gate) -> Tensor:
    return torch.zeros_like(gate.theta) if gate.theta.grad is None else gate.theta.grad


def _mean(value: Tensor) -> Tensor:
    """The mean over all processes."""
    if not dist.is_initialized():
        return value
    return all_reduced({"value": value})["value"] / dist.get_world_size()


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Restores buffers such as running statistics afterwards, and freezes observers in the meantime."""
    leaves = [m for m in module.modules() if isinstance(m, Leaf) and not m.frozen]
    inside = {b for leaf in leaves for b in leaf.buffers()}
    before = [(b, b.clone()) for b in module.buffers() if b not in inside]
    for leaf in leaves:
        leaf.frozen = True
    try:
        yield
    finally:
        for leaf in leaves:
            leaf.frozen = False
        for buffer, old in before:
            buffer.copy_(old)


def _check_finite(value: Tensor, what: str) -> None:
    if not bool(torch.isfinite(value).all()):
        raise TrainingError(
            f"{what} is not finite",
            why="a step in theta along it would close or open gates arbitrarily",
            do="check the learning rate and the data",
        )
