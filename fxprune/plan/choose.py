"""Chooses the units to remove: those with the lowest scores, until a target is met exactly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Literal, NamedTuple, get_args

import numpy as np

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray, lost_positions
from fxprune.analysis.group import Group, distinct
from fxprune.cost import Metric
from fxprune.errors import BudgetError, OptionError
from fxprune.importance.table import FloatArray
from fxprune.plan.limits import Limits

NO_LIMITS = Limits()
METRICS = get_args(Metric)
SCOPES = ("global", "group")
TOLERANCE = 0.01


@dataclass(frozen=True)
class Target:
    """How much of a network is kept.

    Attributes:
        keep: the share of the metric that is kept, 0 < keep <= 1; or globs -> the share of its units that each group
            keeps which the glob matches, see `fxprune.plan.shares`; the metric is then `units`.
        metric: `macs`, `params`, `latency`, or `units` (the share of units kept in each group).
        scope: `global`: the units of all groups compete; `group`: every group keeps the same share.
        at_least: the number of units that every group keeps at least.
        multiple_of: the lengths of pruned axes are multiples of this number.

    Raises:
        OptionError: one of the values cannot be used.
    """

    keep: float | Mapping[str, float] = 0.5
    metric: Metric = "macs"
    scope: Literal["global", "group"] = "global"
    at_least: int = 1
    multiple_of: int = 1

    def __post_init__(self) -> None:
        self._check_keep()
        if self.metric not in METRICS:
            raise OptionError(
                f"there is no metric {self.metric!r}", do=f"choose one of {', '.join(METRICS)}"
            )
        if self.scope not in SCOPES:
            raise OptionError(
                f"there is no scope {self.scope!r}", do=f"choose one of {', '.join(SCOPES)}"
            )
        for name in ("at_least", "multiple_of"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise OptionError(
                    f"{name}={value!r} is not a number of units",
                    why="at_least and multiple_of must be at least 1",
                    do=f"choose a whole number from 1, for example {name}=8",
                )

    def _check_keep(self) -> None:
        each = self.keep if isinstance(self.keep, Mapping) else {"": self.keep}
        for glob, share in each.items():
            if not isinstance(glob, str) or not _is_share(share):
                raise OptionError(
                    f"keep={self.keep!r} is not a share between 0 and 1",
                    where=f"keep[{glob!r}]" if isinstance(self.keep, Mapping) else "",
                    do="choose a number with 0 < keep <= 1, for example keep=0.5, or one for each glob: "
                    'keep={"layer3.*": 0.8, "*": 0.5}',
                )
        if isinstance(self.keep, Mapping) and (not each or self.metric != "units"):
            raise OptionError(
                f"keep has a share for each glob, and metric={self.metric!r}"
                if each
                else "keep has no glob",
                where="keep=",
                why="these are shares of the units of each group",
                do='leave out metric; fp.sensitivity(...).keep(0.5, "macs") finds shares for MACs',
            )


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1


class Refusal(NamedTuple):
    """Why a group loses no units.

    Attributes:
        cause: the kind of reason: its modules are ignored, it has no scores, it is too small, or limits forbid it.
        why: the reason in words.
    """

    cause: Literal["ignored", "unscored", "small", "limited"]
    why: str


@dataclass(frozen=True, eq=False)
class Candidates:
    """The groups that may lose units, and the order in which their units are removed.

    Attributes:
        groups: the groups; of tied ones, the first.
        order: for each group, its units in the order of removal, lowest score first, `[units]`; of tied groups,
            those that are removed together, `[units, groups]`.
        steps: for each group, the number of units that must be removed at a time.
        refused: the groups that lose no units, with the reason, by name.
    """

    groups: list[Group]
    order: list[IntArray]
    steps: list[int]
    refused: dict[str, Refusal]

    @cached_property
    def sizes(self) -> IntArray:
        """The number of units in each group."""
        return np.array([len(units) for units in self.order], np.int64)

    def rounded(self, removed: IntArray, at_least: int) -> IntArray:
        """Rounds the number of units removed from each group down, so that a multiple of its step is kept."""
        steps = np.array(self.steps, np.int64)
        floor = -(-np.maximum(at_least, 1) // steps) * steps
        kept = np.maximum(-(-(self.sizes - removed) // steps) * steps, floor)
        fewer: IntArray = np.maximum(self.sizes - kept, 0)
        return fewer

    def gone(self, removed: IntArray, n_units: int) -> BoolArray:
        """Returns the mask of removed units, `[n_units]`, when each group loses its first `removed` units."""
        out = np.zeros(n_units, bool)
        for order, count in zip(self.order, removed, strict=True):
            out[order[:count]] = True
        return out


def find_candidates(
    axes: Axes,
    groups: Sequence[Group],
    scores: FloatArray,
    target: Target,
    ignored: Collection[str],
    limits: Limits = NO_LIMITS,
) -> Candidates:
    """Finds the groups that may lose units: not ignored or limited, and with more units than must be kept.

    Of tied groups, all may or none. `ignored` parameters keep their own outputs: a group is refused if it cuts one
    of them in the role producer or elementwise.
    """
    refused: dict[str, Refusal] = {}
    found = Candidates([], [], [], refused)
    for tied in _tied(groups, limits):
        rows = gcd(*(len(g) for g in tied))
        own = [_step(axes, g, target.multiple_of) for g in tied]
        own = [s // gcd(s, len(g) // rows) for s, g in zip(own, tied, strict=True)]
        step = int(np.lcm.reduce(own + [limits.steps.get(g.name, 1) for g in tied]))
        reasons = {g.name: _refusal(g, rows, step, scores, target, ignored, limits) for g in tied}
        first = next((name for name, refusal in reasons.items() if refusal), None)
        if first is None:
            order = [g.units[np.argsort(scores[g.units], kind="stable")] for g in tied]
            found.groups.append(tied[0])
            found.steps.append(step)
            parts = [units.reshape(rows, -1) for units in order]
            found.order.append(order[0] if len(order) == 1 else np.concatenate(parts, axis=1))
            continue
        with_it = Refusal("limited", f"it loses as many units as {first}, which loses none")
        refused.update({name: refusal or with_it for name, refusal in reasons.items()})
    return found


def _tied(groups: Sequence[Group], limits: Limits) -> Iterator[list[Group]]:
    """The groups one by one, or tied ones together, in the order of the first."""
    by_name = {g.name: g for g in groups}
    tie_of = {name: tie for tie in limits.ties for name in tie}
    for group in groups:
        tie = [n for n in tie_of.get(group.name, (group.name,)) if n in by_name]
        if tie[0] == group.name:
            yield [by_name[name] for name in tie]


def _refusal(
    group: Group,
    rows: int,
    step: int,
    scores: FloatArray,
    target: Target,
    ignored: Collection[str],
    limits: Limits,
) -> Refusal | None:
    """Why a group may lose no unit; None where it may."""
    hit = next(
        (m.param for m in group.members if m.param in ignored and m.role != "consumer"), None
    )
    if hit is not None:
        return Refusal("ignored", f"{hit} is ignored")
    if group.name in limits.whole:
        return Refusal("limited", limits.whole[group.name])
    if np.isnan(scores[group.units]).any():
        return Refusal("unscored", "the criterion says nothing of it")
    least = max(target.at_least, step)
    if rows <= least:
        return Refusal("small", f"it has {rows} units, of which at least {least} must be kept")
    return None


def choose(
    axes: Axes,
    candidates: Candidates,
    scores: FloatArray,
    target: Target,
    cost: Callable[[BoolArray], float],
    shares: Mapping[str, float] | None = None,
) -> IntArray:
    """Chooses the units to remove.

    Args:
        axes: the labels of a program.
        candidates: the groups that may lose units.
        scores: of the units.
        target: how much is kept.
        cost: what a removal leaves of the metric.
        shares: name of a group -> the share of its units that it keeps, where each has its own.

    Raises:
        BudgetError: the target cannot be reached; the message says how much must be kept.
    """
    if not candidates.groups:
        return np.zeros(0, np.int64)
    search = _Search(axes, candidates, scores, target, cost)
    if shares is not None:
        removed = search.shares(1 - np.array([shares[g.name] for g in candidates.groups]))
    elif target.metric == "units" and not isinstance(target.keep, Mapping):
        removed = search.shares(1 - target.keep)
    else:
        removed = search.to_budget()
    gone = candidates.gone(removed, axes.n_units)
    give_back(axes, gone, scores)
    return np.flatnonzero(gone)


class _Search:
    """The search for the number of units to remove from each group, at exact cost."""

    def __init__(
        self,
        axes: Axes,
        candidates: Candidates,
        scores: FloatArray,
        target: Target,
        cost: Callable[[BoolArray], float],
    ) -> None:
        self.axes, self.candidates, self.target, self.cost = axes, candidates, target, cost
        owner = np.repeat(np.arange(len(candidates.groups)), candidates.sizes)
        worth = [scores[u] if u.ndim == 1 else scores[u].mean(axis=1) for u in candidates.order]
        self.queue = owner[np.argsort(np.concatenate(worth), kind="stable")]

    def spent(self, removed: IntArray) -> float:
        return self.cost(self.candidates.gone(removed, self.axes.n_units))

    def shares(self, share: float | FloatArray) -> IntArray:
        """Returns how many units each group loses if all lose the same share, or each its own."""
        wanted = np.floor(self.candidates.sizes * share + 1e-9).astype(np.int64)
        return self.candidates.rounded(wanted, self.target.at_least)

    def first(self, count: int) -> IntArray:
        """Returns how many units each group loses if the `count` units with the lowest scores of all are removed."""
        wanted = np.bincount(self.queue[:count], minlength=len(self.candidates.groups))
        return self.candidates.rounded(wanted, self.target.at_least)

    def to_budget(self) -> IntArray:
        """Returns the smallest numbers of units, by scores, that meet the budget; the last step is refined."""
        whole = self.spent(np.zeros(len(self.candidates.groups), np.int64))
        assert not isinstance(self.target.keep, Mapping)  # those are shares of units
        budget = self.target.keep * whole
        grid = len(self.queue)
        state = self.first if self.target.scope == "global" else lambda i: self.shares(i / grid)
        least = self.spent(state(grid))
        if least > budget:
            raise BudgetError(
                f"keep={self.target.keep} of {self.target.metric} cannot be reached",
                why=f"even if all prunable units are removed, a share of {least / whole:.3f} is left",
                do=f"choose keep >= {np.ceil(least / whole * 1000) / 1000}, or ignore less, or lower multiple_of",
            )
        low, high = 0, grid
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.spent(state(middle)) <= budget else (middle, high)
        if self.spent(state(low)) <= budget:
            return state(low)
        return self._refine(state(low), state(high), budget)

    def _refine(
        self, above: IntArray, below: IntArray, budget: float, tries: int = 400
    ) -> IntArray:
        """Moves from just above the budget towards it, group by group, by steps that do not fall far below it."""
        best, miss = below, budget - self.spent(below)
        state = above.copy()
        waiting = [*np.flatnonzero(below > above), *np.argsort(-self.candidates.sizes)]
        while miss > TOLERANCE * budget and waiting and tries > 0:
            group, tries = waiting[0], tries - 1
            step = state.copy()
            step[group] = min(
                step[group] + max(1, self.candidates.steps[group]), self.candidates.sizes[group]
            )
            step = self.candidates.rounded(step, self.target.at_least)
            left = self.spent(step)
            if np.array_equal(step, state) or left < budget * (1 - TOLERANCE):
                waiting.pop(0)
            else:
                state = step
            if 0 <= budget - left < miss:
                best, miss = step, budget - left
            elif left <= budget:
                waiting = waiting[1:] if waiting and waiting[0] == group else waiting
        return best


def _step(axes: Axes, group: Group, multiple_of: int) -> int:
    """Returns how many units must be removed at a time so that every axis keeps a multiple of `multiple_of`."""
    step = 1
    if multiple_of == 1:
        return step
    inside = np.zeros(axes.n_units, bool)
    inside[group.units] = True
    for member in group.members:
        label = axes.params[member.param][member.axis]
        step = int(np.lcm(step, _label_step(label, inside, axes.n_units, multiple_of)))
    return step


def _label_step(label: Label, inside: BoolArray, n_units: int, multiple_of: int) -> int:
    """Returns the step that one axis requires; among several factors, the innermost one that can meet it does."""
    counts = [len(distinct(c, n_units)) for c in label.columns]
    if len(counts) == 1:
        column = label.columns[0]
        each = np.bincount(column[inside[column]])
        positions = int(np.gcd.reduce(each[each > 0]))
        return multiple_of // gcd(positions, multiple_of)
    carriers = [k for k, n in enumerate(counts) if n % multiple_of == 0]
    carrier = carriers[-1] if carriers else None
    mine = [k for k, c in enumerate(label.columns) if inside[c].any()]
    return multiple_of if carrier is None or carrier in mine else 1


def give_back(axes: Axes, gone: BoolArray, scores: FloatArray) -> None:
    """Restores the unit with the highest score on every parameter axis that would lose all its positions."""
    for labels in axes.params.values():
        for label in labels:
            lost = lost_positions(label, gone)
            if label.columns and lost.all() and len(lost):
                units = np.stack(label.columns)
                worth = np.where(units == 0, np.inf, scores[units]).min(axis=0)
                gone[units[:, int(worth.argmax())]] = False
