"""Gates that are drawn anew for each step, and whose probabilities are learned: what methods 1 and 2 share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from fxprune.errors import OptionError
from fxprune.gate import Gate, gates
from fxprune.leaf import Leaf
from fxprune.program import Program
from fxprune.training import Change, Shrinker, TrainingError, all_reduced
from fxprune.training.checkpoint import random_state, set_random_state
from fxprune_passes.methods.method import Loss, Method
from fxprune_passes.rewrite.delete_gated import DeleteGated

Tensor = torch.Tensor
Estimator = Literal["two-pass", "score", "first-order"]
Pick = Literal["random", "cyclic"]

# The share of the past in the running baseline of the score function.
DECAY = 0.9


class StochasticGates(Method):
    """Learns the probabilities theta of Bernoulli gates xi beside the weights, and removes what falls to 0.

    The objective is `E_xi[J] + R(theta)`, with J the mean loss of a batch. The gates are independent, so that
    E[J] is affine in each theta_l alone, and

        d/dtheta_l = E[J | xi_l = 1] - E[J | xi_l = 0] + c_l,    c_l = dR/dtheta_l

    A subclass gives c. Steps are projected gradient steps, theta <- clip(theta - rate * estimate, 0, 1).
    Estimates of the difference, from one drawn xi:

    - two-pass: `(2 xi_l - 1) (J(xi) - J(xi with xi_l flipped))`, exact in xi_l, of one l for each step; one more
      forward without gradients, on the same random numbers. B gates take turns, so that the step in theta_l is
      taken by B times the whole of its derivative, c_l with it, and the others are left: unbiased, and no gate
      sinks by its price between its turns. It also says something at theta 0 and 1.
    - score: `(J(xi) - b) (xi_l - theta_l) / (theta_l (1 - theta_l))` with b the running mean of the losses before
      (REINFORCE, Williams 1992): unbiased for 0 < theta_l < 1, of large variance. At 0 and 1 only c_l is left.
    - first-order: `dJ/dxi_l` at the drawn xi, from the backward pass, at no cost (Bengio et al., arXiv 1308.3432).
      Exact where J is affine in xi_l, else biased: a reconstruction of what the papers leave open.

    Draws come from a generator of the method, the same on every process; losses and gradients are averaged over
    processes, so that all decide alike. Thetas stay outside of the optimizer: no momentum, no weight decay. They
    are parameters of the program: sliced, saved and loaded with it.

    Args:
        shrinker: of the network that trains; in train mode. Thetas that its optimizer holds are taken out of it.
        estimator: for gates on branches.
        unit_estimator: for gates on units. Two-pass would take them one by one.
        rate: of the steps in theta.
        start: theta of gates that are put in. Below 1, so that every estimator learns from the first step;
            far above 0, so that the first steps train nearly the whole network.
        theta_tol: a gate whose theta is below is closed, and what it weighs removed.
        settle: after this many epochs in a row at 1 a gate is taken out, and what it weighs stays for good.
        every: remove after each so many steps too; 0 for ends of epochs only.
        pick: which gate has its turn in two-pass: `random`, or `cyclic`, one after the other.
        where: glob of what is gated.
        insert: put gates in where the program has no Bernoulli gates; off to go on with one whose gates are
            all gone. Gates that are there keep their theta.
        verify: hold each removal to what it declares to keep.
        seed: of the draws.

    Raises:
        TrainingError: there is nothing that a gate could be put on.
        OptionError: an option is out of its range.
    """

    insertion: tuple[str, ...] = ("block",)

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
        every: int = 0,
        pick: Pick = "random",
        where: str = "*",
        insert: bool = True,
        verify: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(shrinker)
        _check_options(rate=rate, start=start, theta_tol=theta_tol, settle=settle)
        self.estimator, self.unit_estimator, self.pick = estimator, unit_estimator, pick
        self.rate, self.start, self.theta_tol = rate, start, theta_tol
        self.settle, self.every, self.where, self.verify = settle, every, where, verify
        self.generator = torch.Generator().manual_seed(seed)
        self._known: tuple[Program, dict[str, Gate]] | None = None
        self._random: dict[str, Any] | None = None
        self._baseline: Tensor | None = None
        self._turn = self._steps = 0
        self._at_one: dict[str, int] = {}
        self._changes: list[Change] = []
        if insert and not self.gates:
            self.insert()

    @property
    def gates(self) -> dict[str, Gate]:
        """The Bernoulli gates of the program as it is now, by their paths."""
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
        """Puts gates in, at `start`.

        Raises:
            TrainingError: no gate has a place.
        """
        options = f'kind=bernoulli where="{self.where}"'
        self.shrinker.run(
            " | ".join(f"insert-gates{{scope={s} {options}}}" for s in self.insertion),
            verify=self.verify,
        )
        if not self.gates:
            raise TrainingError(
                "there is nothing to put a gate on",
                where=f"{self.shrinker.program.name}, where={self.where}",
                why="no shortcut leads around a part of it: without that part the network would be cut in two",
                do='put shortcuts in first: shrinker.run("insert-skips")',
            )
        for gate in self.gates.values():
            gate.set(self.start)

    @abstractmethod
    def costs(self) -> dict[str, Tensor]:
        """c: the derivative of the regulariser in each theta, by the gate's path, shaped like theta."""

    def closing(self, path: str, gate: Gate) -> Tensor:
        """Which of a gate's thetas are to be closed: booleans shaped like theta."""
        return gate.theta.detach() < self.theta_tol

    @torch.no_grad()
    def begin(self) -> None:
        """Draws every gate.

        Raises:
            TrainingError: the network is in eval mode.
        """
        found = self.gates
        if any(not gate.training for gate in found.values()):
            raise TrainingError(
                "the network is in eval mode",
                why="gates are drawn in train mode only",
                do="method.module.train()",
            )
        self._random = (
            random_state() if "two-pass" in map(self._estimator, found.values()) else None
        )
        uniform = torch.rand(
            sum(g.theta.numel() for g in found.values()), generator=self.generator
        ).to(_device(found))
        for gate in found.values():
            mine, uniform = uniform[: gate.theta.numel()], uniform[gate.theta.numel() :]
            gate.sample.copy_(mine.to(gate.theta.device).view_as(gate.theta) < gate.theta)
            gate.theta.grad = None

    @torch.no_grad()
    def learn(self, value: Tensor, loss: Loss) -> None:
        """A step in theta.

        Raises:
            TrainingError: a loss or a gradient is not finite; no theta has changed.
        """
        found = self.gates
        for path, gradient in self.gradient(value, loss).items():
            found[path].theta.sub_(self.rate * gradient).clamp_(0, 1)

    def gradient(self, value: Tensor, loss: Loss) -> dict[str, Tensor]:
        """The estimate of the objective's gradient in theta at the drawn gates, costs included.

        Args:
            value: the loss at the drawn gates `[]`.
            loss: what gave it.

        Returns:
            By the gate's path, shaped like theta; gates that are not asked in this step are left out.
        """
        chosen: dict[Estimator, dict[str, Gate]] = {}
        for path, gate in self.gates.items():
            chosen.setdefault(self._estimator(gate), {})[path] = gate
        ways = {"two-pass": self._two_pass, "score": self._score, "first-order": self._first_order}
        costs = self.costs() if chosen else {}
        found: dict[str, Tensor] = {}
        for estimator, group in chosen.items():
            found |= ways[estimator](group, costs, value, loss)
        return found

    def _estimator(self, gate: Gate) -> Estimator:
        return self.unit_estimator if gate.theta.dim() else self.estimator

    def _two_pass(
        self, group: Mapping[str, Gate], costs: Mapping[str, Tensor], value: Tensor, loss: Loss
    ) -> dict[str, Tensor]:
        count = sum(gate.theta.numel() for gate in group.values())
        path, at = _locate(group, self._next(count))
        gate = group[path]
        one = gate.sample.view(-1)[at]
        drawn = one.clone()
        one.copy_(1 - drawn)
        other = self._again(loss)
        one.copy_(drawn)
        difference = (2 * drawn - 1) * _mean(value - other).to(drawn.dtype)
        _check_finite(difference, f"the loss with {path} flipped")
        found = torch.zeros_like(gate.theta)
        found.view(-1)[at] = count * (difference + costs[path].view(-1)[at])
        return {path: found}

    def _score(
        self, group: Mapping[str, Gate], costs: Mapping[str, Tensor], value: Tensor, _: Loss
    ) -> dict[str, Tensor]:
        value, baseline = (
            _mean(value.to(torch.promote_types(value.dtype, torch.float32))),
            self._baseline,
        )
        _check_finite(value, "the loss")
        self._baseline = value if baseline is None else DECAY * baseline + (1 - DECAY) * value
        if baseline is None:  # the first loss is all that is known: nothing to hold it against
            return {}
        found = {}
        for path, gate in group.items():
            theta = gate.theta.detach()
            score = (gate.sample - theta) / (theta * (1 - theta))
            inside = (theta > 0) & (theta < 1)
            found[path] = torch.where(inside, score, 0) * (value - baseline) + costs[path]
        return found

    def _first_order(
        self, group: Mapping[str, Gate], costs: Mapping[str, Tensor], _: Tensor, __: Loss
    ) -> dict[str, Tensor]:
        scaler = self.shrinker.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        flat = _mean(torch.cat([_gradient(gate).view(-1) for gate in group.values()])) / scale
        if scaler is not None and not bool(torch.isfinite(flat).all()):
            return {}  # the scaler leaves this step out for the weights, too
        _check_finite(flat, "the gradient in theta")
        sizes = [gate.theta.numel() for gate in group.values()]
        parts = zip(group.items(), torch.split(flat, sizes), strict=True)
        return {path: part.view_as(gate.theta) + costs[path] for (path, gate), part in parts}

    def _next(self, count: int) -> int:
        """Whose turn it is."""
        if self.pick == "random":
            return int(torch.randint(count, (), generator=self.generator))
        self._turn += 1
        return (self._turn - 1) % count

    @torch.no_grad()
    def _again(self, loss: Loss) -> Tensor:
        """The loss on the random numbers of this step's forward; nothing that is kept changes."""
        assert self._random is not None
        now = random_state()
        with _kept(self.module):
            set_random_state(self._random)
            try:
                return loss(self.module).detach()
            finally:
                set_random_state(now)

    def finish(self) -> None:
        """Counts the step, and removes where it is time."""
        self._steps += 1
        if self.every and self._steps % self.every == 0:
            self._changes += self._remove([])

    def end_epoch(self) -> list[Change]:
        """Removes what is closed, and gates that have settled at 1; nothing where no step was taken."""
        if self._steps:
            at_one = {p: n for p, g in self.gates.items() if (n := self._count_at_one(p, g))}
            self._at_one, self._steps = at_one, 0
            self._changes += self._remove([p for p, n in at_one.items() if n >= self.settle])
        changes, self._changes = self._changes, []
        return changes

    def _count_at_one(self, path: str, gate: Gate) -> int:
        return self._at_one.get(path, 0) + 1 if bool((gate.theta == 1).all()) else 0

    @torch.no_grad()
    def _remove(self, opened: list[str]) -> list[Change]:
        found = self.gates
        closed = {p: g for p, g in found.items() if bool(self.closing(p, g).any())}
        if not closed and not opened:
            return []
        names = [*closed, *opened]
        before = [(t, t.clone()) for p in names for t in (found[p].theta, found[p].sample)]
        try:
            for path, gate in closed.items():
                mask = self.closing(path, gate)
                gate.theta.masked_fill_(mask, 0)
                gate.sample.masked_fill_(mask, 0)
            for path in opened:
                found[path].sample.fill_(1)  # in train mode a gate multiplies by its last draw
            one = DeleteGated(where=tuple(map(escape, names)))
            change = self.shrinker.run(one, verify=self.verify)
        except Exception:
            for tensor, old in before:
                tensor.copy_(old)
            raise
        self._at_one = {p: n for p, n in self._at_one.items() if p in self.gates}
        return [change] if change.changed else []

    @torch.no_grad()
    def settled(self) -> Program:
        """A copy of the network in which gates that are left are open where theta >= 1/2, and else closed."""
        program = super().settled()
        for path in self.gates:
            gate = gates(program)[path]
            gate.set((gate.theta >= 0.5).to(gate.theta.dtype))
        return program

    def numbers(self) -> dict[str, float]:
        """Gates left, the mean and the smallest theta."""
        thetas = [gate.theta.detach().view(-1) for gate in self.gates.values()]
        flat = torch.cat(thetas).double() if thetas else torch.empty(0)
        known = {"theta_mean": float(flat.mean()), "theta_min": float(flat.min())} if thetas else {}
        return {"gates": float(len(flat)), **known}

    def state_dict(self) -> dict[str, Any]:
        return {
            "gates": list(self.gates),
            "generator": self.generator.get_state(),
            "baseline": self._baseline,
            "turn": self._turn,
            "steps": self._steps,
            "at_one": dict(self._at_one),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self.state_dict().keys() or state["gates"] != list(self.gates):
            raise TrainingError(
                "the state is of another method or another network",
                why=f"it knows {len(state.get('gates', ()))} gates, the program has {len(self.gates)}",
                do="load the program that was saved with it; insert=False where all its gates are gone",
            )
        self.generator.set_state(state["generator"])
        self._baseline, self._turn = state["baseline"], state["turn"]
        self._steps, self._at_one = state["steps"], dict(state["at_one"])

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


def _locate(group: Mapping[str, Gate], number: int) -> tuple[str, int]:
    """The gate, and the position in it, of a number that counts through all of them."""
    for path, gate in group.items():
        if number < gate.theta.numel():
            return path, number
        number -= gate.theta.numel()
    raise AssertionError(number)


def _gradient(gate: Gate) -> Tensor:
    return torch.zeros_like(gate.theta) if gate.theta.grad is None else gate.theta.grad


def _device(found: Mapping[str, Gate]) -> torch.device:
    return next((gate.theta.device for gate in found.values()), torch.device("cpu"))


def _mean(value: Tensor) -> Tensor:
    """The mean over all processes."""
    if not dist.is_initialized():
        return value
    return all_reduced({"value": value})["value"] / dist.get_world_size()


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Buffers, such as running statistics, are put back afterwards; observers do not count meanwhile."""
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
            why="a step in theta by it would close or open gates for no reason",
            do="look at the learning rate and the data",
        )


def _check_options(*, rate: float, start: float, theta_tol: float, settle: int) -> None:
    for name, value, good in (
        ("rate", rate, 0 < rate < float("inf")),
        ("theta_tol", theta_tol, 0 < theta_tol < 1),
        ("start", start, theta_tol <= start <= 1),
        ("settle", settle, settle >= 1),
    ):
        if not good:
            raise OptionError(
                f"{name} is {value}",
                do="rate > 0, 0 < theta_tol < 1, theta_tol <= start <= 1, settle >= 1",
            )
