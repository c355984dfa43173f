"""Chooses which units go: lowest scores first, until a budget is met exactly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from math import gcd
from typing import Literal, get_args

import numpy as np

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray, lost_positions
from fxprune.analysis.group import Group, distinct
from fxprune.cost import Metric
from fxprune.errors import BudgetError, OptionError
from fxprune.importance.table import FloatArray

METRICS = get_args(Metric)
SCOPES = ("global", "group")
TOLERANCE = 0.01


@dataclass(frozen=True)
class Target:
    """How much is to stay.

    Attributes:
        keep: share of the metric that stays, 0 < keep <= 1.
        metric: macs, params, or units (that share of each group).
        scope: global (all groups compete) or group (the same share of each).
        at_least: units that every group keeps.
        multiple_of: lengths of shrunk axes are multiples of this.
    """

    keep: float = 0.5
    metric: Metric = "macs"
    scope: Literal["global", "group"] = "global"
    at_least: int = 1
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise OptionError(
                f"keep={self.keep} is not a share", do="choose 0 < keep <= 1, for example keep=0.5"
            )
        if self.metric not in METRICS:
            raise OptionError(
                f"no metric is called {self.metric!r}", do=f"known: {', '.join(METRICS)}"
            )
        if self.scope not in SCOPES:
            raise OptionError(
                f"no scope is called {self.scope!r}", do=f"known: {', '.join(SCOPES)}"
            )
        if self.at_least < 1 or self.multiple_of < 1:
            raise OptionError("at_least and multiple_of are at least 1")


@dataclass(frozen=True, eq=False)
class Candidates:
    """Groups that may lose units, their units in the order they go, and how few may stay.

    Attributes:
        groups: the groups.
        order: for each group its units, lowest score first.
        steps: units of a group go in multiples of this (from its full size, down to a multiple).
        refused: groups that may not lose any: name -> reason.
    """

    groups: list[Group]
    order: list[IntArray]
    steps: list[int]
    refused: dict[str, str]

    @cached_property
    def sizes(self) -> IntArray:
        """Units of each group."""
        return np.array([len(g) for g in self.groups], np.int64)

    def rounded(self, removed: IntArray, at_least: int) -> IntArray:
        """Units removed of each group, rounded down so that what stays is a multiple of its step."""
        steps = np.array(self.steps, np.int64)
        floor = -(-np.maximum(at_least, 1) // steps) * steps
        kept = np.maximum(-(-(self.sizes - removed) // steps) * steps, floor)
        fewer: IntArray = np.maximum(self.sizes - kept, 0)
        return fewer

    def gone(self, removed: IntArray, n_units: int) -> BoolArray:
        """The removed units, when each group loses its first `removed`."""
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
) -> Candidates:
    """What may be chosen: not ignored, and of more units than must stay.

    The own outputs of `ignored` parameters stay: a group is left when it cuts one as producer or elementwise.
    """
    refused: dict[str, str] = {}
    chosen: list[Group] = []
    steps: list[int] = []
    for group in groups:
        step = _step(axes, group, target.multiple_of)
        hit = next(
            (m.param for m in group.members if m.param in ignored and m.role != "consumer"), None
        )
        if hit is not None:
            refused[group.name] = f"{hit} is ignored"
        elif np.isnan(scores[group.units]).any():
            refused[group.name] = "the criterion says nothing of it"
        elif len(group) <= max(target.at_least, step):
            refused[group.name] = f"{len(group)} units, and {max(target.at_least, step)} must stay"
        else:
            chosen.append(group)
            steps.append(step)
    order = [g.units[np.argsort(scores[g.units], kind="stable")] for g in chosen]
    return Candidates(chosen, order, steps, refused)


def choose(
    axes: Axes,
    candidates: Candidates,
    scores: FloatArray,
    target: Target,
    cost: Callable[[BoolArray], int],
) -> IntArray:
    """The units that go.

    Raises:
        BudgetError: the target cannot be reached; says how far it can get.
    """
    if not candidates.groups:
        return np.zeros(0, np.int64)
    search = _Search(axes, candidates, scores, target, cost)
    removed = search.shares(1 - target.keep) if target.metric == "units" else search.to_budget()
    gone = candidates.gone(removed, axes.n_units)
    give_back(axes, gone, scores)
    return np.flatnonzero(gone)


class _Search:
    """Counts of removed units per group, by exact cost."""

    def __init__(
        self,
        axes: Axes,
        candidates: Candidates,
        scores: FloatArray,
        target: Target,
        cost: Callable[[BoolArray], int],
    ) -> None:
        self.axes, self.candidates, self.target, self.cost = axes, candidates, target, cost
        owner = np.repeat(np.arange(len(candidates.groups)), candidates.sizes)
        units = np.concatenate(candidates.order)
        self.queue = owner[np.argsort(scores[units], kind="stable")]

    def spent(self, removed: IntArray) -> int:
        return self.cost(self.candidates.gone(removed, self.axes.n_units))

    def shares(self, share: float) -> IntArray:
        """The same share of every group."""
        wanted = np.floor(self.candidates.sizes * share + 1e-9).astype(np.int64)
        return self.candidates.rounded(wanted, self.target.at_least)

    def first(self, count: int) -> IntArray:
        """The `count` units of lowest score, over all groups."""
        wanted = np.bincount(self.queue[:count], minlength=len(self.candidates.groups))
        return self.candidates.rounded(wanted, self.target.at_least)

    def to_budget(self) -> IntArray:
        """The fewest units in the order of scores that meet the budget, then its last step taken finer."""
        whole = self.spent(np.zeros(len(self.candidates.groups), np.int64))
        budget = self.target.keep * whole
        grid = len(self.queue)
        state = self.first if self.target.scope == "global" else lambda i: self.shares(i / grid)
        least = self.spent(state(grid))
        if least > budget:
            raise BudgetError(
                f"keep={self.target.keep} of {self.target.metric} cannot be reached",
                why=f"with all that may go gone, {least / whole:.3f} stay",
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
        """From just above the budget towards it, group by group, taking steps that do not fall far below."""
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
    """How many units must go together so that every axis keeps a multiple of `multiple_of` positions."""
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
    """The step that one axis asks for; of a product of factors, the innermost that can carry it does."""
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
    """For every parameter axis left with no position, gives back the best-scored one."""
    for labels in axes.params.values():
        for label in labels:
            lost = lost_positions(label, gone)
            if label.columns and lost.all() and len(lost):
                units = np.stack(label.columns)
                worth = np.where(units == 0, np.inf, scores[units]).min(axis=0)
                gone[units[:, int(worth.argmax())]] = False


def ignored_parameters(
    names: Collection[str], paths: Collection[str], patterns: Sequence[str]
) -> set[str]:
    """Parameters in modules whose path matches a glob; a module's children belong to it.

    Raises:
        OptionError: a pattern that matches no module.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = [p for p in paths if fnmatchcase(p, pattern)]
        direct = [n for n in names if fnmatchcase(n, pattern)]
        if not hits and not direct:
            near = get_close_matches(pattern, paths, 1, cutoff=0.3)
            raise OptionError(
                f"ignore pattern {pattern!r} matches no module",
                do=f"did you mean {near[0]!r}?" if near else "take paths from fp.summary(program)",
            )
        found.update(direct)
        found.update(n for n in names if any(n.startswith(f"{hit}.") for hit in hits))
    return found
