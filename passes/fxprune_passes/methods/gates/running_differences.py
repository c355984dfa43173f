"""Running means of what the gates of a network in training were estimated to be worth."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fxprune.graph.gate import Gate
from fxprune_passes.methods.gates.theta_gradients import Estimate

Tensor = torch.Tensor

# The number of past estimates that a mean stands for.
WINDOW = 50


class RunningDifferences:
    """For each gate the mean of its last estimates of `E[J | xi = 1] - E[J | xi = 0]`, without costs.

    A plain mean of the first `WINDOW` estimates, and an exponential one from then on.

    Attributes:
        means: by gate path, shaped like theta; 0 before the first estimate.
        counts: the estimates so far, shaped like theta, at most `WINDOW`.
    """

    def __init__(self) -> None:
        self.means: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def update(self, estimates: Mapping[str, Estimate]) -> None:
        """Adds the estimates of a step."""
        for path, one in estimates.items():
            new = one.difference.detach()
            if path not in self.means or self.means[path].shape != new.shape:
                self.means[path], self.counts[path] = torch.zeros_like(new), torch.zeros_like(new)
            seen = torch.as_tensor(one.times, device=new.device) > 0
            mean, count = self.means[path], self.counts[path]
            count.add_(seen).clamp_(max=WINDOW)
            mean.add_(torch.where(seen, (new - mean) / count.clamp(min=1), 0))

    def controlled(
        self, estimates: Mapping[str, Estimate], turns: Mapping[str, Gate]
    ) -> dict[str, Estimate]:
        """Estimates of less variance and the same expectation for gates that take turns, before `update`.

        With m the mean of a gate so far, and B gates that take turns, `m + B (difference - m)` stands for the
        gate whose turn it is, and m for each other one: m is a control variate, whose expectation is known. The
        variance falls from that of B times the difference to that of B times what m does not foresee, and every
        gate moves in every step. A gate without an estimate so far waits for its first turn, which counts B times.

        Args:
            estimates: of a step, by gate path.
            turns: the gates that take turns.

        Returns:
            All estimates of the step.
        """
        found = dict(estimates)
        for path in turns.keys() & (estimates.keys() | self.means.keys()):
            theta = turns[path].theta.detach()
            known = self.counts.get(path, torch.zeros_like(theta)) > 0
            mean = self.means.get(path, torch.zeros_like(theta))
            one = estimates.get(path, Estimate(mean, torch.zeros_like(theta)))
            better = mean + one.times * (one.difference - mean)
            times = torch.where(known, 1.0, torch.as_tensor(one.times).to(theta))
            found[path] = Estimate(torch.where(known, better, one.difference), times)
        return found

    def sizes(self) -> dict[str, Tensor]:
        """The absolute means of the gates that have an estimate everywhere, by path."""
        return {p: m.abs() for p, m in self.means.items() if bool((self.counts[p] > 0).all())}

    def follow(self, closed: Mapping[str, Tensor], found: Mapping[str, Gate]) -> None:
        """Follows a removal; where other units went than those of closed gates, the mean starts anew.

        Args:
            closed: by gate path, which thetas were closed before, as booleans.
            found: the gates that are left.
        """
        for path in list(self.means):
            if path not in found:
                del self.means[path], self.counts[path]
            elif self.means[path].shape != found[path].theta.shape:
                stays = ~closed.get(path, torch.zeros(0, dtype=torch.bool))
                if stays.shape == self.means[path].shape and int(stays.sum()) == len(
                    found[path].theta
                ):
                    self.means[path] = self.means[path][stays]
                    self.counts[path] = self.counts[path][stays]
                else:
                    del self.means[path], self.counts[path]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Copies of both attributes."""
        mine = {"means": self.means, "counts": self.counts}
        return {name: {p: t.clone() for p, t in own.items()} for name, own in mine.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restores what `state_dict` returned."""
        self.means = {p: t.clone() for p, t in state["means"].items()}
        self.counts = {p: t.clone() for p, t in state["counts"].items()}
