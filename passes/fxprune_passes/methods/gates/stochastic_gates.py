"""The base class of methods with stochastic gates, which are sampled in each step and learn their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fxprune.graph.gate import Gate
from fxprune.training import Change, Shrinker
from fxprune_passes.methods.gates.budget import Budget
from fxprune_passes.methods.gates.cost_share import Metric
from fxprune_passes.methods.gates.drawn_gates import DrawnGates
from fxprune_passes.methods.gates.gate_removal import remove_gated
from fxprune_passes.methods.gates.life import Life
from fxprune_passes.methods.gates.rates import Rate, Rates
from fxprune_passes.methods.gates.running_differences import RunningDifferences
from fxprune_passes.methods.gates.settling import (
    Measured,
    settle_by_data,
    settle_by_means,
)
from fxprune_passes.methods.gates.theta_gradients import Estimator, Pick
from fxprune_passes.methods.method import Loss, check_options

Tensor = torch.Tensor
# The share of the training after which a network of a wished size is decided, if not said otherwise.
DECIDED = 0.6


class StochasticGates(DrawnGates):
    """Learns the probabilities theta of Bernoulli gates xi along with the weights, and removes what falls to 0.

    The objective is `E_xi[J] + R(theta)`, with J the mean loss of a batch. The gates are independent, so that
    E[J] is affine in each theta_l alone, and

        d/dtheta_l = E[J | xi_l = 1] - E[J | xi_l = 0] + c_l,    c_l = dR/dtheta_l

    A subclass provides c. Steps are projected gradient steps, theta <- clip(theta - rate * estimate, 0, 1);
    `ThetaGradients` estimates the difference from one sample of xi. Gates that take turns also move between them,
    by the running mean of their differences: see `RunningDifferences.controlled`.

    Gates live through three phases. For `start_after` epochs they are at 1, and nothing is drawn. Then they are
    drawn and learn. From the end of epoch `settle_at` on, or from a call of `settle`, every gate is decided:
    training goes on without chance, on what stays.

    Samples come from a generator of the method, which is the same on every process; losses and gradients are
    averaged over processes, so that all make the same decisions. Thetas are not updated by the optimizer: they
    have neither momentum nor weight decay. They are parameters of the program: sliced, saved and loaded with it.

    Args:
        shrinker: the shrinker of the network, in train mode. Thetas are removed from its optimizer.
        estimator: the estimator for gates on branches.
        unit_estimator: the estimator for gates on units. Two-pass would evaluate them one at a time.
        rate: the step size in theta; "auto": such that a branch that is worth nothing and has the mean cost falls
            from `start` to 0 in a share `fall_within` of all steps of the training; with `keep` "auto" is the
            mean size of the running means instead of the cost. None: "auto" with `keep`, else 0.01.
        unit_rate: the step size for units; None: such that a unit that is worth nothing falls as fast as such a
            branch; where there are no gates on branches, `rate`.
        fall_within: see `rate`; above 0 and at most 1.
        epochs: the epochs of the training, for "auto". The steps are then counted in the first epoch, in which
            thetas wait: `start_after` is at least 1.
        total_steps: the steps of the training, instead of `epochs`.
        start_after: the epochs of warm-up.
        settle_at: the epoch (the first is 1) at whose end `end_epoch` calls `settle`; None: it never does.
        settle_on: returns the mean loss on data that decide, see `settle`.
        keep: the wished share of the cost, see `Budget`: the price is found while training, and `settle` brings the
            network to this share, as near as its gates allow. Without `settle_at`, gates settle after 60 % of `epochs`.
        metric: the cost that `keep` is about: "macs", "params" or "latency".
        start: the initial theta of inserted gates. Below 1, so that every estimator learns from the first step;
            far above 0, so that the first steps train nearly the whole network. After a warm-up, of all gates
            that are at 1.
        theta_tol: a gate whose theta is below this value is closed, and what it multiplies is removed.
        keep_after: a gate that was at 1 for this many consecutive epochs is removed, and what it multiplies stays.
        remove_every: also remove after every so many steps; 0: at the ends of epochs only.
        pick: how two-pass chooses the gate of a step: `random`, or `cyclic`, one after the other.
        measure_every: two-pass measures in every n-th step only, and what it measures then counts n times; between,
            thetas move by running means.
        where: glob of the paths that are gated.
        ignore: globs of the paths that get no gate.
        insert: whether gates are inserted if the program has no Bernoulli gates; set it to False to continue with
            a program whose gates have all been removed. Existing gates keep their theta.
        verify: whether each removal is verified.
        seed: the seed of the generator.

    Raises:
        TrainingError: no gate can be inserted.
        OptionError: an option is out of its range.
    """

    def __init__(
        self,
        shrinker: Shrinker,
        *,
        estimator: Estimator = "two-pass",
        unit_estimator: Estimator = "trapezoid",
        rate: Rate | None = None,
        unit_rate: Rate | None = None,
        fall_within: float = 0.3,
        epochs: int | None = None,
        total_steps: int | None = None,
        start_after: int = 0,
        settle_at: int | None = None,
        settle_on: Loss | None = None,
        keep: float | None = None,
        metric: Metric = "macs",
        start: float = 0.9,
        theta_tol: float = 0.01,
        keep_after: int = 3,
        remove_every: int = 0,
        pick: Pick = "random",
        measure_every: int = 1,
        where: str = "*",
        ignore: Sequence[str] = (),
        insert: bool = True,
        verify: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            shrinker,
            estimator,
            unit_estimator,
            pick=pick,
            measure_every=measure_every,
            where=where,
            ignore=ignore,
            verify=verify,
            seed=seed,
        )
        if rate is None:
            rate = 0.01 if keep is None else "auto"
        if keep is not None and settle_at is None and epochs is not None:
            settle_at = max(start_after + 1, round(DECIDED * epochs))
        self.life = Life(start_after, settle_at, epochs, total_steps)
        self.rates = Rates(rate, unit_rate, start, fall_within, self.life)
        known = (total_steps, epochs, keep) != (None, None, None)
        check_options(
            (
                '"auto"',
                "of unknown length",
                known or not self.rates.auto,
                "used with epochs or total_steps",
            ),
            ("keep", keep, keep is None or settle_at is not None, "used with epochs or settle_at"),
            ("theta_tol", theta_tol, 0 < theta_tol < 1, "above 0 and below 1"),
            ("start", start, theta_tol <= start <= 1, "from theta_tol to 1"),
            ("measure_every", measure_every, measure_every >= 1, "1 or more steps"),
            ("keep_after", keep_after, keep_after >= 1, "1 or more epochs"),
            ("remove_every", remove_every, remove_every >= 0, "0 or more steps"),
        )
        untimed = self.rates.auto and total_steps is None
        if untimed or (keep is not None and not self.life.timed):
            self.life.start_after = max(1, start_after)
        self.budget = None if keep is None else Budget(shrinker.program, keep, metric)
        self.rate, self.unit_rate = rate, unit_rate
        self.start, self.theta_tol, self.settle_on = start, theta_tol, settle_on
        self.keep_after, self.remove_every = keep_after, remove_every
        self.differences = RunningDifferences()
        self._rates: tuple[float, float] | None = None
        self._at_one: dict[str, int] = {}
        self._changes: list[Change] = []
        if insert and not self.gates:
            self.insert()

    @property
    def learning(self) -> bool:
        return self.life.learning

    def insert(self) -> None:
        super().insert()
        for gate in self.gates.values():
            gate.set(1.0 if self.life.warming else self.start)

    def weight(self, theta: Tensor) -> float:
        """The factor of a price for the gate of a theta."""
        return 1.0

    def costs_now(self) -> dict[str, Tensor]:
        """`costs` at the present thetas, for a subclass whose costs are computed now and then."""
        return self.costs()

    def closing(self, path: str, gate: Gate) -> Tensor:
        """Which thetas of a gate are to be closed, as booleans shaped like theta."""
        return gate.theta.detach() < self.theta_tol

    @torch.no_grad()
    def begin(self) -> None:
        if self.life.learning:
            super().begin()
        else:
            self._open()

    @torch.no_grad()
    def learn(self, value: Tensor, loss: Loss) -> None:
        """Takes a gradient step in theta, unless the gates warm up or are settled.

        Raises:
            TrainingError: a loss or a gradient is not finite; no theta has been changed.
        """
        found = self.gates
        if not found or not self.life.learning:
            return
        seen = self._estimates(value, loss)
        turns = {p: gate for p, gate in found.items() if self._estimator(gate) == "two-pass"}
        estimates = self.differences.controlled(seen, turns)
        self.differences.update(seen)
        if self.budget is not None:
            if sizes := self.differences.sizes():
                rates, program = self.rates.find(sizes), self.shrinker.program
                self.budget.learn(program, found, estimates, rates, self.weight, self.life.progress)
            return
        costs = self.costs()
        if self._rates is None:
            self._rates = self.rates.find(costs)
        for path, one in estimates.items():
            theta = found[path].theta
            theta.sub_(self._rates[bool(theta.dim())] * one.plus(costs[path])).clamp_(0, 1)

    def finish(self) -> None:
        """Counts the step, and removes closed gates after every `remove_every` steps."""
        super().finish()
        self.life.steps += 1
        if self.life.learning and self.remove_every and self.steps % self.remove_every == 0:
            self._changes += self._remove([])

    def remove(self) -> list[Change]:
        """Removes what closed gates multiply, and the gates that were at 1 for long; moves on in their life."""
        warming = self.life.warming
        self.life.end_epoch()
        if warming:
            if self.life.learning:
                self._start()
            return []
        if self.life.epoch == self.life.settle_at and not self.life.settled:
            self._changes += self.settle()
        else:
            at_one = {p: n for p, g in self.gates.items() if (n := self._count_at_one(p, g))}
            self._at_one = at_one
            self._changes += self._remove([p for p, n in at_one.items() if n >= self.keep_after])
        changes, self._changes = self._changes, []
        return changes

    def _start(self) -> None:
        self._known = None
        for gate in self.gates.values():
            if bool((gate.theta == 1).all()):
                gate.set(self.start)

    @torch.no_grad()
    def settle(self, loss: Loss | None = None) -> list[Change]:
        """Decides every gate that is not at 0 or 1, and removes all gates; training goes on without chance.

        A gate is decided by what it is worth, the difference of the losses with it open and closed, plus its cost;
        see `settle_by_data`. Without data, the running mean of its estimates stands for the difference.

        Args:
            loss: returns the mean loss of a given network on data `[]`, preferably data that training does not
                see; called many times, with gradients if there are gates on units. None: `settle_on`.

        Returns:
            The changes, possibly none.

        Raises:
            TrainingError: a loss is not finite, or the network is in eval mode. Nothing has been decided.
            PipelineError: a removal failed. Nothing has been decided.
        """
        found, loss = self._gates_in_train_mode(), loss or self.settle_on
        kept = [(t, t.clone()) for g in found.values() for t in (g.theta, g.sample)]
        measured = Measured(self.module, loss) if loss is not None and found else None
        try:
            if measured is None:
                settle_by_means(found, self.differences, self.costs_now)
            else:
                settle_by_data(found, measured, self.costs_now)
            if self.budget is not None and found:
                self.budget.settle(self.shrinker.program, found, measured or self.differences)
            changes = self._remove([p for p, g in found.items() if bool((g.theta == 1).all())])
        except BaseException:
            for tensor, old in kept:
                tensor.copy_(old)
            raise
        self.life.settled, self._known = True, None
        return changes

    def _count_at_one(self, path: str, gate: Gate) -> int:
        return self._at_one.get(path, 0) + 1 if bool((gate.theta == 1).all()) else 0

    def _remove(self, opened: list[str]) -> list[Change]:
        closed = {
            p: mask for p, g in self.gates.items() if bool((mask := self.closing(p, g)).any())
        }
        opened = [p for p in opened if p not in closed]
        open_before = {p: torch.ones_like(g.theta, dtype=torch.bool) for p, g in self.gates.items()}
        changes = remove_gated(self.shrinker, closed, opened, verify=self.verify)
        self._at_one = {p: n for p, n in self._at_one.items() if p in self.gates}
        if changes and self.budget is not None:
            self.budget.follow({**open_before, **{p: ~m for p, m in closed.items()}}, self.gates)
        if changes:
            self.differences.follow(closed, self.gates)
        if changes and closed:
            self.life.last_removal = self.life.epoch + bool(self.steps)
        return changes

    def numbers(self) -> dict[str, float]:
        """The numbers of `DrawnGates`, the epoch of the last removal (0: none), price and share of a budget."""
        found = {**super().numbers(), "last_removal": float(self.life.last_removal)}
        if self.budget is not None:
            share = self.budget.share(self.shrinker.program, self.gates)
            found |= {"price": self.budget.price, "expected_share": share}
        return found

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "generator": self.generator.get_state(),
            "baseline": self.gradients.baseline,
            "turn": self.gradients.turn,
            "at_one": dict(self._at_one),
            "life": self.life.state_dict(),
            "rates": self._rates,
            "differences": self.differences.state_dict(),
            "budget": None if self.budget is None else self.budget.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.gradients.baseline, self.gradients.turn = state["baseline"], state["turn"]
        self._at_one = dict(state["at_one"])
        self.life.load_state_dict(state["life"])
        self._rates, self._known = state["rates"], None
        self.differences.load_state_dict(state["differences"])
        if self.budget is not None:
            self.budget.load_state_dict(state["budget"])
