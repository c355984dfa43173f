"""Prunes units during training: in each round those that contribute least to the sums of the next layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fxprune.analysis.cache import solved
from fxprune.analysis.group import find_groups
from fxprune.graph.program import module_paths
from fxprune.importance.table import FloatArray
from fxprune.observe import Contribution, observers
from fxprune.plan import Plan, plan_removal
from fxprune.plan.choose import Candidates, Target, find_candidates, give_back
from fxprune.plan.globs import ignored_parameters
from fxprune.remark import Remark
from fxprune.training import Change, Shrinker, TrainingError, check_agreed
from fxprune_passes.methods.measures.counted_steps import CountedSteps
from fxprune_passes.methods.method import Method, check_options
from fxprune_passes.methods.units.contribution_ranks import rank_contributions
from fxprune_passes.methods.units.unit_quotas import UnitQuotas


class NeuronImportance(Method):
    """Removes a share of every layer in each round, by the contributions of units to the sums of the next layer.

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
        shrinker: the shrinker of the network in training; observers are inserted into its program.
        share: the share of each layer that is removed in a round, 0 < share <= 1.
        target: the removed share of hidden units at which the method stops and removes its observers: of each
            layer ceil(target width), or one unit less where that is all of them. None: it never stops.
        signed: whether the quotients keep their signs, as in the equations of the paper.
        lam_avg: the weight of C_avg.
        lam_max: the weight of C_max.
        warmup: the number of epochs before the first counted one.
        epochs_per_round: the number of epochs in each round, of which the last one is counted.
        ignore: globs of module paths whose own outputs stay unchanged.
        observe_every: count in every n-th step of an epoch, starting with the first; the paper uses 1. A counted
            step takes about three times as long on a convolutional network: at 32 the mean step takes 1.06.
        of: the width that `share` refers to, see above.
        criterion: importance; or random, the control of the paper: as many units of the same layers, at random.
        seed: the seed of the random criterion; the same on all processes.
        verify: whether each smaller network is compared in float64 with the silenced original.

    Attributes:
        epoch: the number of completed epochs, without those that had no steps.
        rounds: the number of rounds that have removed units.
        done: whether the method has stopped.
        widths: the number of units at the start, by the names of the dependency groups that have a rank.
        left: for each group that cannot lose a unit, by name, the reason.
        remarks: the remarks on observers, and one for each group that cannot lose a unit.

    Raises:
        OptionError: an option is out of its range, or a pattern of `ignore` matches nothing.
        TrainingError: no unit of the network has a rank; nothing has changed.
    """

    bound = ("signed", "criterion")

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
        epochs_per_round: int = 1,
        ignore: Sequence[str] = (),
        observe_every: int = 32,
        of: Literal["original", "present"] = "original",
        criterion: Literal["importance", "random"] = "importance",
        seed: int = 0,
        verify: bool = True,
    ) -> None:
        super().__init__(shrinker)
        check_options(
            ("share", share, 0 < share <= 1, "above 0 and at most 1"),
            ("target", target, target is None or 0 < target < 1, "above 0 and below 1, or None"),
            ("lam_avg", lam_avg, lam_avg >= 0, "0 or more"),
            (
                "lam_max",
                lam_max,
                lam_max >= 0 < lam_avg + lam_max,
                "0 or more, above 0 with lam_avg",
            ),
            ("warmup", warmup, warmup >= 0, "0 or more epochs"),
            ("epochs_per_round", epochs_per_round, epochs_per_round >= 1, "1 or more"),
            ("observe_every", observe_every, observe_every >= 1, "1 or more steps"),
            ("of", of, of in ("original", "present"), "original or present"),
            ("criterion", criterion, criterion in ("importance", "random"), "importance or random"),
        )
        self.signed, self.lam_avg, self.lam_max = signed, lam_avg, lam_max
        self.warmup, self.epochs_per_round, self.observe_every = (
            warmup,
            epochs_per_round,
            observe_every,
        )
        self.ignore, self.criterion, self.seed, self.verify = tuple(ignore), criterion, seed, verify
        self.epoch = self.rounds = 0
        self.done = False
        self.widths: dict[str, int] = {}
        self.left: dict[str, str] = {}
        self.remarks: tuple[Remark, ...] = ()
        self._quotas = UnitQuotas(share, target, of)
        self._counts = CountedSteps(shrinker, self._watched)
        self._start()

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
            self._stop()
            raise TrainingError(
                "no unit of this network has a rank",
                where=program.name,
                why="; ".join(f"{n}: {why}" for n, why in self.left.items()) or "it has no units",
                do="use a network in which a linear layer or a convolution reads the output of an activation function",
            )
        self.widths = {g.name: len(g) for g in candidates.groups}
        self._counts.settle()

    def _watched(self) -> dict[str, Contribution]:
        """The observers of the current network by their paths."""
        found = observers(self.shrinker.program)
        return {path: one for path, one in found.items() if isinstance(one, Contribution)}

    def _due(self, epoch: int) -> bool:
        past = epoch - self.warmup
        return not self.done and past > 0 and past % self.epochs_per_round == 0

    def begin(self) -> None:
        due = self.criterion == "importance" and self._due(self.epoch + 1)
        self._counts.begin(due and self.steps % self.observe_every == 0)

    def finish(self) -> None:
        super().finish()
        self._counts.finish()

    def give_up(self) -> None:
        self._counts.roll_back()

    def remove(self) -> list[Change]:
        """After the last epoch of a round: removes the units with the lowest ranks; otherwise nothing."""
        self._counts.roll_back()
        self.epoch += 1
        if not self._due(self.epoch):
            return []
        for one in self._watched().values():
            one.all_reduce()
        self.rounds += 1
        plan = check_agreed(self.decide())
        changes = [self.shrinker.apply(plan, verify=self.verify)] if plan.removed.size else []
        self._counts.reset()
        if self._quotas.are_full(self.widths, self._present()):
            changes += self._stop()
        return changes

    def decide(self) -> Plan:
        """The pruning plan of a round: in every layer the units with the lowest ranks are removed."""
        program = self.shrinker.program
        axes, scores = solved(program), self._scores()
        candidates = self._candidates(scores)
        for group in candidates.groups:
            self.widths.setdefault(group.name, len(group))
        counts = np.array(
            [self._quotas.now(self.widths[g.name], len(g), self.rounds) for g in candidates.groups],
            np.int64,
        )
        gone = candidates.gone(candidates.rounded(counts, 1), axes.n_units)
        give_back(axes, gone, np.where(np.isnan(scores), np.inf, scores))
        return plan_removal(program, axes, np.flatnonzero(gone))

    def _present(self) -> dict[str, int]:
        """The number of units left in each group that has a rank."""
        sizes = {g.name: len(g) for g in find_groups(solved(self.shrinker.program))}
        return {name: sizes.get(name, 0) for name in self.widths}

    def _candidates(self, scores: FloatArray) -> Candidates:
        """The groups that can lose units; records a remark on each of the others once."""
        program = self.shrinker.program
        axes = solved(program)
        ignored = ignored_parameters(list(axes.params), module_paths(program), self.ignore)
        found = find_candidates(axes, find_groups(axes), scores, Target(), ignored)
        unread = "no observed layer reads it after an activation function"
        for name, refusal in found.refused.items():
            reason = unread if refusal.cause == "unscored" else refusal.why
            if self.left.get(name) != reason:
                remark = Remark("missed", "choose.left", name, "no unit is removed", reason)
                self.remarks = (*self.remarks, remark)
            self.left[name] = reason
        return found

    def _scores(self) -> FloatArray:
        """The score of each unit `[n_units]`, higher means keep; NaN where no layer has observed it."""
        axes = solved(self.shrinker.program)
        scores = rank_contributions(axes, self._watched(), self.lam_avg, self.lam_max)
        if self.criterion == "random":
            drawn = np.random.default_rng((self.seed, self.rounds)).random(axes.n_units)
            scores = np.where(np.isnan(scores), scores, drawn)
        return scores

    def numbers(self) -> dict[str, float]:
        """The hidden units left, the removed share of them, and the number of groups that cannot lose any."""
        now, start = sum(self._present().values()), sum(self.widths.values())
        return {"hidden_units": now, "gone": 1 - now / start, "groups_left": len(self.left)}

    def _stop(self) -> list[Change]:
        """Stops the method and removes its observers."""
        self.done = True
        change = self.shrinker.run("remove-observers{stat=contribution}", verify=self.verify)
        return [change] if change.changed else []

    def state_dict(self) -> dict[str, Any]:
        self._counts.roll_back()
        return super().state_dict() | {
            "epoch": self.epoch,
            "rounds": self.rounds,
            "done": self.done,
            "widths": dict(self.widths),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.epoch, self.rounds = state["epoch"], state["rounds"]
        self.widths = dict(state["widths"])
        if state["done"]:
            self._stop()
