"""The gates of a network in training: inserted, drawn in each step, and estimated from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch

from fxprune.graph.gate import Gate, gates
from fxprune.graph.program import Program
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.insert.insert_gates import InsertGates, Scope
from fxprune_passes.methods.gates.settling import undecided
from fxprune_passes.methods.gates.theta_gradients import (
    SLOPES,
    Estimate,
    Estimator,
    Pick,
    Step,
    ThetaGradients,
)
from fxprune_passes.methods.method import Loss, Method

Tensor = torch.Tensor


class DrawnGates(Method):
    """Draws the Bernoulli gates of a network in each step, and estimates the gradient of their probabilities.

    Samples come from a generator of the method, which is the same on every process. Thetas leave the optimizer.

    Args:
        shrinker: the shrinker of the network, in train mode.
        estimator: the estimator for gates on branches.
        unit_estimator: the estimator for gates on units.
        pick: how two-pass chooses the gate of a step.
        measure_every: two-pass measures in every n-th step, and what it measures counts n times.
        where: glob of the paths that are gated.
        ignore: globs of the paths that get no gate.
        verify: whether the insertion is verified.
        seed: the seed of the generator.
    """

    insertion: tuple[Scope, ...] = ("block",)

    def __init__(
        self,
        shrinker: Shrinker,
        estimator: Estimator,
        unit_estimator: Estimator,
        *,
        pick: Pick,
        measure_every: int,
        where: str,
        ignore: Sequence[str],
        verify: bool,
        seed: int,
    ) -> None:
        super().__init__(shrinker)
        self.estimator, self.unit_estimator = estimator, unit_estimator
        self.where, self.ignore, self.verify = where, tuple(ignore), verify
        self.measure_every = measure_every
        self.generator = torch.Generator().manual_seed(seed)
        self.gradients = ThetaGradients(pick, self.generator)
        self._known: tuple[Program, dict[str, Gate]] | None = None

    @property
    def learning(self) -> bool:
        """Whether gates are drawn and learn at present."""
        return True

    @property
    def gates(self) -> dict[str, Gate]:
        """The Bernoulli gates of the current program by their paths."""
        program = self.shrinker.program
        if self._known is None or self._known[0] is not program:
            found = {p: g for p, g in gates(program).items() if g.kind == "bernoulli"}
            for gate in found.values():
                straight = self._estimator(gate) in SLOPES and self.learning
                gate.draws = False
                gate.estimator = "straight-through" if straight else "score"
                gate.theta.requires_grad_(straight)
            self._known = (program, found)
            self._leave_optimizer(found)
        return self._known[1]

    def insert(self) -> None:
        """Inserts gates, at theta 1.

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

    @abstractmethod
    def costs(self) -> dict[str, Tensor]:
        """The derivative c of the regulariser with respect to each theta, by gate path and shaped like theta."""

    @torch.no_grad()
    def begin(self) -> None:
        """Draws every gate.

        Raises:
            TrainingError: the network is in eval mode.
        """
        found = self._gates_in_train_mode()
        takes_turns = "two-pass" in map(self._estimator, found.values())
        self.gradients.begin(repeats=takes_turns and self._measures)
        if not found:
            return
        thetas = [gate.theta.detach().view(-1) for gate in found.values()]
        uniform = torch.rand(sum(map(len, thetas)), generator=self.generator)
        drawn = uniform.to(thetas[0].device) < torch.cat(thetas)
        parts = torch.split(drawn.to(thetas[0].dtype), [len(theta) for theta in thetas])
        torch._foreach_copy_([gate.sample.view(-1) for gate in found.values()], list(parts))

    @torch.no_grad()
    def _open(self) -> None:
        """Sets every sample to the nearer end of its theta."""
        for gate in self._gates_in_train_mode().values():
            gate.sample.copy_(gate.theta >= 0.5)

    def _gates_in_train_mode(self) -> dict[str, Gate]:
        found = self.gates
        if any(not gate.training for gate in found.values()):
            raise TrainingError(
                "the network is in eval mode",
                why="gates are sampled in train mode only",
                do="call method.module.train()",
            )
        for gate in found.values():
            gate.theta.grad = None
        return found

    def gradient(self, value: Tensor, loss: Loss) -> dict[str, Tensor]:
        """Estimates the gradient of the objective with respect to theta at the sampled gates, including costs.

        Args:
            value: the loss at the sampled gates `[]`.
            loss: the function that returned it.

        Returns:
            The estimates by gate path, shaped like theta; without the gates that are not estimated in this step.
        """
        costs = self.costs() if self.gates else {}
        return {p: one.plus(costs[p]) for p, one in self._estimates(value, loss).items()}

    def _estimates(self, value: Tensor, loss: Loss) -> dict[str, Estimate]:
        chosen: dict[Estimator, dict[str, Gate]] = {}
        for path, gate in self.gates.items():
            chosen.setdefault(self._estimator(gate), {})[path] = gate
        scaler = self.shrinker.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        step = Step(self.module, value, loss, scale, scaler is not None)
        found: dict[str, Estimate] = {}
        for estimator, group in chosen.items():
            if estimator != "two-pass":
                found |= self.gradients.estimate(estimator, group, step)
            elif self._measures:
                measured = self.gradients.estimate(estimator, group, step)
                found |= {p: one.as_often(self.measure_every) for p, one in measured.items()}
        return found

    @property
    def _measures(self) -> bool:
        """Whether two-pass measures in this step."""
        return self.steps % self.measure_every == 0

    def finish_training(self, *, round_gates: bool = False) -> Program:
        """A copy of the network for inference, see `for_use`; the network in training stays unchanged.

        Args:
            round_gates: whether undecided gates are rounded, see `settled`.

        Raises:
            TrainingError: a theta is neither 0 nor 1, and `round_gates` is not set.
        """
        open_ends = {p: m for p, g in self.gates.items() if bool((m := undecided(g)).any())}
        if open_ends and not round_gates:
            count = sum(int(mask.sum()) for mask in open_ends.values())
            raise TrainingError(
                f"{count} gates are undecided",
                where=", ".join(_spell(p, self.gates[p], m) for p, m in open_ends.items()),
                why="their thetas are neither 0 nor 1: rounding makes a network that was never trained",
                do="call method.settle() and train on, or create the method with settle_at; "
                "or finish_training(round_gates=True)",
            )
        return super().finish_training()

    @torch.no_grad()
    def settled(self) -> Program:
        """A copy of the network in which the remaining gates are open where theta >= 1/2, and closed elsewhere."""
        program = super().settled()
        for path in self.gates:
            gate = gates(program)[path]
            gate.set((gate.theta >= 0.5).to(gate.theta.dtype))
        return program

    def numbers(self) -> dict[str, float]:
        """The number of remaining gates and of undecided ones, the mean and the smallest theta."""
        thetas = [gate.theta.detach().view(-1) for gate in self.gates.values()]
        flat = torch.cat(thetas).double() if thetas else torch.empty(0)
        known = {"theta_mean": float(flat.mean()), "theta_min": float(flat.min())} if thetas else {}
        return {
            "gates": float(len(flat)),
            "undecided": float(sum(int(undecided(g).sum()) for g in self.gates.values())),
            **known,
        }

    def _estimator(self, gate: Gate) -> Estimator:
        return self.unit_estimator if gate.theta.dim() else self.estimator

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


def _spell(path: str, gate: Gate, mask: Tensor) -> str:
    thetas = [f"{theta:.2g}" for theta in gate.theta.detach()[mask].flatten().tolist()]
    return f"{path} ({', '.join(thetas[:4])}{', ...' if len(thetas) > 4 else ''})"
