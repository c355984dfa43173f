"""Units go while a network trains: in each round those that add least to what the next layer sums up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from fxprune.algebra.label import IntArray
from fxprune.api import module_paths, solved
from fxprune.axes import Axes
from fxprune.choose import Candidates, Target, find_candidates, give_back, ignored_parameters
from fxprune.errors import OptionError
from fxprune.group import find_groups
from fxprune.importance.table import FloatArray
from fxprune.observe import Contribution, count_apart, observers
from fxprune.plan import Plan, plan_removal
from fxprune.remark import Remark
from fxprune.training import Change, Shrinker, TrainingError, check_agreed
from fxprune_passes.methods.method import Loss, Method

Tensor = torch.Tensor
SLACK = 1e-9  # what a product of shares may miss a whole number by


class NeuronImportance(Method):
    """Drops the bottom share of every layer again and again, by contributions to the next layer's sums.

    "Neural importance-based train-time pruning" (Reddy, Kundapura, Budhia, Jain, University of Southern
    California), section 3.3 and algorithm 1. Unit k of a layer with N units that feeds M units, over F forwards
    (a: behind the activation, w: the weight of the layer that reads it):

        q_kjf    = w_kj a_kf / sum_i w_ij a_if
        C_avg(k) = 1/(F M) sum_f sum_j q_kjf        (1)
        C_max(k) = max over j and f of q_kjf        (2)
        rank by    lam_avg * C_avg(k) + lam_max * C_max(k)

    As printed the terms may cancel in the sum: quotients are then of either sign and of any size, and a pair of
    large opposite terms looks more important than one term that carries the sum. With absolute values, |w| |a|,
    the default here, each quotient is a share: 0 <= q <= 1, sum_k q_kjf = 1 wherever anything flows, so that
    sum_k C_avg(k) <= 1. 0/0 counts as 0. A unit that nothing reads with a weight, or that never fires, has rank 0.

    What the paper leaves open, and how it is read here:

    - F are the training steps of one epoch; a forward in between, such as an evaluation, does not count. The
      weights move meanwhile: each step counts with its own.
    - A convolution's term of k is the sum over its window, and positions count as forwards.
    - A unit is what fxprune can remove alone, with all that is coupled to it. Where it takes several positions of
      a reader (a channel in front of a flatten), C_avg adds up and C_max is the largest of them. Where several layers
      read it (a residual stream), the ranks of each reader are divided by their sum, and these shares
      added up. With one reader this does not change the order.
    - The bottom x % of each layer: of the width it had at the start (`of="original"`), so that after r rounds
      floor(r x width) of its units are gone in all, small layers keep pace and counts are exact; or of
      its width at the time (`of="present"`, at least one unit a round).

    One round: train an epoch and count; rank; drop; forget the counts; train on. The first `warmup` epochs are the
    paper's "initial maturity". Groups of units that no layer reads behind an activation function have no rank
    (linear bottlenecks, attention heads, the stream of a transformer): they stay, and `left` says so.
    Outputs of the network are never cut, and no layer loses its last unit.

    Args:
        shrinker: of the network that trains; observers are put into its program.
        share: of each layer that goes in a round, 0 < share <= 1.
        target: share of the hidden units gone at which it stops and takes the observers out: of each layer
            ceil(target width), one unit less where that is all of them. None: it never stops; call `close()`.
        signed: the quotients of the paper's equations, with their signs.
        lam_avg: weight of C_avg.
        lam_max: weight of C_max.
        warmup: epochs before the first one that counts.
        every: epochs of a round; the last one of them counts.
        ignore: globs of module paths whose own outputs stay as they are.
        observe_every: count in every n-th step of an epoch, the first included; 1 is the paper's own. A step that
            counts takes about three times as long on a convolutional network: at 32 the mean step takes 1.06.
        of: what `share` is a share of, see above.
        criterion: importance; or random, the paper's control: as many units of the same layers, drawn at random.
        seed: of the random criterion; the same on all processes.
        verify: hold each smaller network against the silenced one, in float64.

    Attributes:
        epoch: epochs that have ended.
        rounds: rounds that have dropped units.
        done: whether it has stopped.
        widths: units at the start, by the names of the groups that have a rank.
        left: groups that may lose no unit: name -> reason.
        remarks: of the observers, and one for each group that is left.

    Raises:
        OptionError: an option out of range, or a pattern of `ignore` that matches nothing.
        TrainingError: no unit of the network has a rank; nothing has changed.
    """

    def __init__(
        self,
        shrinker: Shrinker,
        share: float = 0.1,
        target: float | None = None,
        *,
        signed: bool = False,
        lam_avg: float = 0.5,
        lam_max: float = 0.5,
        warmup: int = 1,
        every: int = 1,
        ignore: Sequence[str] = (),
        observe_every: int = 32,
        of: Literal["original", "present"] = "original",
        criterion: Literal["importance", "random"] = "importance",
        seed: int = 0,
        verify: bool = True,
    ) -> None:
        super().__init__(shrinker)
        self.share, self.target, self.of, self.criterion = share, target, of, criterion
        self.signed, self.lam_avg, self.lam_max = signed, lam_avg, lam_max
        self.warmup, self.every, self.observe_every = warmup, every, observe_every
        self.ignore, self.seed, self.verify = tuple(ignore), seed, verify
        self._check_options()
        self.epoch = self.rounds = self.steps = 0
        self.done = False
        self.widths: dict[str, int] = {}
        self.left: dict[str, str] = {}
        self.remarks: tuple[Remark, ...] = ()
        self._kept: dict[str, dict[str, Tensor]] | None = None
        self._start()

    def _check_options(self) -> None:
        wrong = {
            "share": not 0 < self.share <= 1,
            "target": self.target is not None and not 0 < self.target < 1,
            "lam_avg, lam_max": min(self.lam_avg, self.lam_max) < 0
            or not self.lam_avg + self.lam_max > 0,
            "warmup": self.warmup < 0,
            "every": self.every < 1,
            "observe_every": self.observe_every < 1,
            "of": self.of not in ("original", "present"),
            "criterion": self.criterion not in ("importance", "random"),
        }
        for name in (n for n, bad in wrong.items() if bad):
            values = ", ".join(str(getattr(self, n)) for n in name.split(", "))
            raise OptionError(f"{name} is {values}", do="see the options of NeuronImportance")

    def _start(self) -> None:
        program = self.shrinker.program
        ignored_parameters(list(solved(program).params), module_paths(program), self.ignore)
        signed = "signed=true" if self.signed else "signed=false"
        change = self.shrinker.run(
            f"insert-observers{{stat=contribution {signed}}}", verify=self.verify
        )
        assert change.result is not None
        found = change.result.select("insert-observers", "missed")
        self.remarks = tuple(r for r in found if r.code != "insert-observers.observed")
        candidates = self._candidates(self._scores())
        if not candidates.groups:
            self.close()
            raise TrainingError(
                "no unit of this network has a rank",
                where=program.name,
                why="; ".join(f"{n}: {why}" for n, why in self.left.items()) or "it has no units",
                do="units count where a linear layer or a convolution reads them behind an activation function",
            )
        self.widths = {g.name: len(g) for g in candidates.groups}
        self._settle()

    def _watched(self) -> dict[str, Contribution]:
        """The observers by their paths, in the network as it is now."""
        found = observers(self.shrinker.program)
        return {path: one for path, one in found.items() if isinstance(one, Contribution)}

    def _forget(self) -> None:
        for one in self._watched().values():
            one.reset()
        self._settle()

    def _settle(self) -> None:
        """Nothing counts before the next step, and each process for itself."""
        for one in self._watched().values():
            one.freeze()
        if dist.is_available() and dist.is_initialized():
            count_apart(self.module)

    def _due(self, epoch: int) -> bool:
        past = epoch - self.warmup
        return not self.done and past > 0 and past % self.every == 0

    def begin(self) -> None:
        self._roll_back()
        counts = self.criterion == "importance" and self._due(self.epoch + 1)
        if counts and self.steps % self.observe_every == 0:
            watched = self._watched()
            self._kept = {
                path: {name: buffer.clone() for name, buffer in one.named_buffers()}
                for path, one in watched.items()
            }
            for one in watched.values():
                one.freeze(False)

    def step(self, loss: Loss) -> Tensor:
        try:
            return super().step(loss)
        finally:
            self._roll_back()

    def finish(self) -> None:
        self.steps += 1
        if self._kept is not None:
            self._kept = None
            for one in self._watched().values():
                one.freeze()

    @torch.no_grad()
    def _roll_back(self) -> None:
        """Takes back what a step has counted that did not come to its end."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            for path, one in self._watched().items():
                for name, buffer in one.named_buffers():
                    buffer.copy_(kept[path][name])
                one.freeze()

    def end_epoch(self) -> list[Change]:
        self._roll_back()
        self.epoch += 1
        self.steps = 0
        if not self._due(self.epoch):
            return []
        for one in self._watched().values():
            one.all_reduce()
        if self.criterion == "importance" and not any(
            int(o.seen) for o in self._watched().values()
        ):
            self._forget()  # an epoch without steps is no round
            return []
        self.rounds += 1
        plan = check_agreed(self.decide())
        changes = [self.shrinker.apply(plan, verify=self.verify)] if plan.removed.size else []
        self._forget()
        if self._is_reached():
            changes += self.close()
        return changes

    def decide(self) -> Plan:
        """The plan of a round, by what was counted: every layer loses its lowest ranks."""
        program = self.shrinker.program
        axes, scores = solved(program), self._scores()
        candidates = self._candidates(scores)
        counts = np.array([self._count(g.name, len(g)) for g in candidates.groups], np.int64)
        gone = candidates.gone(candidates.rounded(counts, 1), axes.n_units)
        give_back(axes, gone, np.where(np.isnan(scores), np.inf, scores))
        return plan_removal(program, axes, np.flatnonzero(gone))

    def _count(self, name: str, present: int) -> int:
        """How many of the units of a group go in this round."""
        width = self.widths.setdefault(name, present)
        before = width - present
        if self.of == "original":
            wanted = floor(self.rounds * self.share * width + SLACK)
        else:
            wanted = before + max(1, floor(self.share * present + SLACK))
        return max(0, min(wanted, self._quota(width)) - before)

    def _quota(self, width: int) -> int:
        """How many units of a group may go in all."""
        return (
            width - 1 if self.target is None else min(ceil(self.target * width - SLACK), width - 1)
        )

    def _is_reached(self) -> bool:
        now = self._present()
        return self.target is not None and all(
            width - now[name] >= self._quota(width) for name, width in self.widths.items()
        )

    def _present(self) -> dict[str, int]:
        """Units left of each group that has a rank."""
        sizes = {g.name: len(g) for g in find_groups(solved(self.shrinker.program))}
        return {name: sizes.get(name, 0) for name in self.widths}

    def _candidates(self, scores: FloatArray) -> Candidates:
        """The groups that may lose units; notes the others, once."""
        program = self.shrinker.program
        axes = solved(program)
        ignored = ignored_parameters(list(axes.params), module_paths(program), self.ignore)
        found = find_candidates(axes, find_groups(axes), scores, Target(), ignored)
        unread = "no layer with observers reads it behind an activation function"
        for name, why in found.refused.items():
            reason = unread if why == "the criterion says nothing of it" else why
            if self.left.get(name) != reason:
                remark = Remark("missed", "choose.left", name, "no unit is removed", reason)
                self.remarks = (*self.remarks, remark)
            self.left[name] = reason
        return found

    def _scores(self) -> FloatArray:
        """One number per unit `[n_units]`, higher means keep; NaN where no layer says anything of it."""
        axes = solved(self.shrinker.program)
        scores = np.full(axes.n_units, np.nan)
        for path, one in self._watched().items():
            for units, ranks in self._ranks(axes, path, one):
                shares = ranks / (ranks.sum() or 1.0)
                scores[units] = np.nan_to_num(scores[units]) + shares
        if self.criterion == "random":
            drawn = np.random.default_rng((self.seed, self.rounds)).random(axes.n_units)
            scores = np.where(np.isnan(scores), scores, drawn)
        return scores

    def _ranks(self, axes: Axes, path: str, one: Contribution) -> list[tuple[IntArray, FloatArray]]:
        """Units of one reader, and lam_avg * C_avg + lam_max * C_max of each."""
        average, largest = (x.nan_to_num(0.0).cpu().numpy() for x in one.statistics().values())
        found = []
        for column in axes.params[f"{path}.total"][0].columns:
            units, index = np.unique(column, return_inverse=True)
            top = np.full(len(units), -np.inf)
            np.maximum.at(top, index, largest)
            ranks = self.lam_avg * np.bincount(index, average) + self.lam_max * top
            found.append((units[units > 0], ranks[units > 0]))
        return found

    def numbers(self) -> dict[str, float]:
        """Hidden units left, the share of them that is gone, and how many groups may lose none."""
        now, start = sum(self._present().values()), sum(self.widths.values())
        return {"hidden_units": now, "gone": 1 - now / start, "groups_left": len(self.left)}

    def close(self) -> list[Change]:
        """Stops, and takes the observers out."""
        self.done, self._kept = True, None
        change = self.shrinker.run("remove-observers{stat=contribution}", verify=self.verify)
        return [change] if change.changed else []

    def state_dict(self) -> dict[str, Any]:
        self._roll_back()
        names = ("epoch", "rounds", "steps", "done", "widths", "signed", "criterion")
        return {"method": "neuron-importance"} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        mine = self.state_dict()
        fixed = ("method", "signed", "criterion")
        if set(state) != set(mine) or any(state[name] != mine[name] for name in fixed):
            raise TrainingError(
                "the state is of another method, or one with other options",
                where=", ".join(f"{n}={state.get(n)}" for n in fixed),
                do="make the NeuronImportance that was saved",
            )
        for name in set(mine) - set(fixed):
            setattr(self, name, state[name])
        self.widths = dict(state["widths"])
        if self.done:
            self.close()
