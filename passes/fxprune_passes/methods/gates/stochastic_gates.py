"""The base class of methods with stochastic gates, which are sampled in each step and learn their probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fxprune.graph.gate import Gate, gates
from fxprune.graph.program import Program
from fxprune.training import Change, Shrinker, TrainingError
from fxprune_passes.insert.insert_gates import InsertGates, Scope
from fxprune_passes.methods.gates.gate_removal import remove_gated
from fxprune_passes.methods.gates.theta_gradients import Estimator, Pick, Step, ThetaGradients
from fxprune_passes.methods.method import Loss, Method, check_options

Tensor = torch.Tensor


class StochasticGates(Method):
    """Learns the probabilities theta of Bernoulli gates xi along with the weights, and removes what falls to 0.

    The objective is `E_xi[J] + R(theta)`, with J the mean loss of a batch. The gates are independent, so that
    E[J] is affine in each theta_l alone, and

        d/dtheta_l = E[J | xi_l = 1] - E[J | xi_l = 0] + c_l,    c_l = dR/dtheta_l

    A subclass provides c. Steps are projected gradient steps, theta <- clip(theta - rate * estimate, 0, 1);
    `ThetaGradients` estimates the difference from one sample of xi.

    Samples come from a generator of the method, which is the same on every process; losses and gradients are
    averaged over processes, so that all make the same decisions. Thetas are not updated by the optimizer: they
    have neither momentum nor weight decay. They are parameters of the program: sliced, saved and loaded with it.

    Args:
        shrinker: the shrinker of the network, in train mode. Thetas are removed from its optimizer.
        estimator: the estimator for gates on branches.
        unit_estimator: the estimator for gates on units. Two-pass would evaluate them one at a time.
        rate: the step size in theta.
        start: the initial theta of inserted gates. Below 1, so that every estimator learns from the first step;
            far above 0, so that the first steps train nearly the whole network.
        theta_tol: a gate whose theta is below this value is closed, and what it multiplies is removed.
        settle: a gate that was at 1 for this many consecutive epochs is removed, and what it multiplies stays.
        remove_every: also remove after every so many steps; 0: at the ends of epochs only.
        pick: how two-pass chooses the gate of a step: `random`, or `cyclic`, one after the other.
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

    insertion: tuple[Scope, ...] = ("block",)

    def __init__(
        self,
        shrinker: Shrinker,
        *,
        estimator: Estimator = "two-pass",
        unit_estimator: Estimator = "first-order",
        rate: float = 0.01,
        start: float = 0.9,
        theta_tol: float = 0.01,
        settle: int = 3,
        remove_every: int = 0,
        pick: Pick = "random",
        where: str = "*",
        ignore: Sequence[str] = (),
        insert: bool = True,
        verify: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(shrinker)
        check_options(
            ("rate", rate, 0 < rate < float("inf"), "above 0"),
            ("theta_tol", theta_tol, 0 < theta_tol < 1, "above 0 and below 1"),
            ("start", start, theta_tol <= start <= 1, "from theta_tol to 1"),
            ("settle", settle, settle >= 1, "1 or more epochs"),
            ("remove_every", remove_every, remove_every >= 0, "0 or more steps"),
        )
        self.estimator, self.unit_estimator = estimator, unit_estimator
        self.rate, self.start, self.theta_tol = rate, start, theta_tol
        self.settle, self.remove_every, self.verify = settle, remove_every, verify
        self.where, self.ignore = where, tuple(ignore)
        self.generator = torch.Generator().manual_seed(seed)
        self.gradients = ThetaGradients(pick, self.generator)
        self._known: tuple[Program, dict[str, Gate]] | None = None
        self._at_one: dict[str, int] = {}
        self._changes: list[Change] = []
        if insert and not self.gates:
            self.insert()

    @property
    def gates(self) -> dict[str, Gate]:
        """The Bernoulli gates of the current program by their paths."""
        program = self.shrinker.program
        if self._known is None or self._known[0] is not program:
            found = {p: g for p, g in gates(program).items() if g.kind == "bernoulli"}
            for gate in found.values():
                straight = self._estimator(gate) == "first-order"
                gate.draws = False
                gate.estimator = "straight-through" if straight else "score"
                gate.theta.requires_grad_(straight)
            self._known = (program, found)
            self._leave_optimizer(found)
        return self._known[1]

    def insert(self) -> None:
        """Inserts gates whose theta is `start`.

        Raises:
            TrainingError: no gate can be inserted.
        """
        steps = [
            InsertGates(s, self.where, "bernoulli", ignore=self.ignore) for s in self.insertion
        ]
        self.shrinker.run(steps, verify=self.verify)
        if not self.gates:
            raise TrainingError(
                "no gate can be inserted",
                where=f"{self.shrinker.program.name}, where={self.where}",
                why="no part of the network has a shortcut around it: removing a part would cut the network in two",
                do='insert shortcuts first: shrinker.run("insert-skips")',
            )
        for gate in self.gates.values():
            gate.set(self.start)

    @abstractmethod
    def costs(self) -> dict[str, Tensor]:
        """The derivative c of the regulariser with respect to each theta, by gate path and shaped like theta."""

    def closing(self, path: str, gate: Gate) -> Tensor:
        """Which thetas of a gate are to be closed, as booleans shaped like theta."""
        return gate.theta.detach() < self.theta_tol

    @torch.no_grad()
    def begin(self) -> None:
        """Samples every gate.

        Raises:
            TrainingError: the network is in eval mode.
        """
        found = self.gates
        if any(not gate.training for gate in found.values()):
            raise TrainingError(
                "the network is in eval mode",
                why="gates are sampled in train mode only",
                do="call method.module.train()",
            )
        self.gradients.begin(repeats="two-pass" in map(self._estimator, found.values()))
        count = sum(gate.theta.numel() for gate in found.values())
        device = next((gate.theta.device for gate in found.values()), None)
        uniform = torch.rand(count, generator=self.generator).to(device)
        for gate in found.values():
            mine, uniform = uniform[: gate.theta.numel()], uniform[gate.theta.numel() :]
            gate.sample.copy_(mine.to(gate.theta.device).view_as(gate.theta) < gate.theta)
            gate.theta.grad = None

    @torch.no_grad()
    def learn(self, value: Tensor, loss: Loss) -> None:
        """Takes a gradient step in theta.

        Raises:
            TrainingError: a loss or a gradient is not finite; no theta has been changed.
        """
        found = self.gates
        for path, gradient in self.gradient(value, loss).items():
            found[path].theta.sub_(self.rate * gradient).clamp_(0, 1)

    def gradient(self, value: Tensor, loss: Loss) -> dict[str, Tensor]:
        """Estimates the gradient of the objective with respect to theta at the sampled gates, including costs.

        Args:
            value: the loss at the sampled gates `[]`.
            loss: the function that returned it.

        Returns:
            The estimates by gate path, shaped like theta; without the gates that are not estimated in this step.
        """
        chosen: dict[Estimator, dict[str, Gate]] = {}
        for path, gate in self.gates.items():
            chosen.setdefault(self._estimator(gate), {})[path] = gate
        scaler, costs = self.shrinker.scaler, self.costs() if chosen else {}
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        step = Step(self.module, value, loss, costs, scale, scaler is not None)
        found: dict[str, Tensor] = {}
        for estimator, group in chosen.items():
            found |= self.gradients.estimate(estimator, group, step)
        return found

    def _estimator(self, gate: Gate) -> Estimator:
        return self.unit_estimator if gate.theta.dim() else self.estimator

    def finish(self) -> None:
        """Counts the step, and removes closed gates after every `remove_every` steps."""
        super().finish()
        if self.remove_every and self.steps % self.remove_every == 0:
            self._changes += self._remove([])

    def remove(self) -> list[Change]:
        """Removes what closed gates multiply, and the gates that have settled at 1."""
        at_one = {p: n for p, g in self.gates.items() if (n := self._count_at_one(p, g))}
        self._at_one = at_one
        self._changes += self._remove([p for p, n in at_one.items() if n >= self.settle])
        changes, self._changes = self._changes, []
        return changes

    def _count_at_one(self, path: str, gate: Gate) -> int:
        return self._at_one.get(path, 0) + 1 if bool((gate.theta == 1).all()) else 0

    def _remove(self, opened: list[str]) -> list[Change]:
        closed = {
            p: mask for p, g in self.gates.items() if bool((mask := self.closing(p, g)).any())
        }
        changes = remove_gated(self.shrinker, closed, opened, verify=self.verify)
        self._at_one = {p: n for p, n in self._at_one.items() if p in self.gates}
        return changes

    @torch.no_grad()
    def settled(self) -> Program:
        """A copy of the network in which the remaining gates are open where theta >= 1/2, and closed elsewhere."""
        program = super().settled()
        for path in self.gates:
            gate = gates(program)[path]
            gate.set((gate.theta >= 0.5).to(gate.theta.dtype))
        return program

    def numbers(self) -> dict[str, float]:
        """The number of remaining gates, and their mean and smallest theta."""
        thetas = [gate.theta.detach().view(-1) for gate in self.gates.values()]
        flat = torch.cat(thetas).double() if thetas else torch.empty(0)
        known = {"theta_mean": float(flat.mean()), "theta_min": float(flat.min())} if thetas else {}
        return {"gates": float(len(flat)), **known}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "generator": self.generator.get_state(),
            "baseline": self.gradients.baseline,
            "turn": self.gradients.turn,
            "at_one": dict(self._at_one),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.gradients.baseline, self.gradients.turn = state["baseline"], state["turn"]
        self._at_one = dict(state["at_one"])

    def _leave_optimizer(self, found: Mapping[str, Gate]) -> None:
        optimizer = self.shrinker.optimizer
        own = {gate.theta for gate in found.values()}
        for group in optimizer.param_groups:
            stays = [i for i, p in enumerate(group["params"]) if p not in own]
            for key in ("params", "param_names"):
                if key in group:
                    group[key][:] = [group[key][i] for i in stays]
        for theta in own:
            optimizer.state.pop(theta, None)
