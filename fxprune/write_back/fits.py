"""Learns what the class of a model can express, by asking it: plans that cannot be written back set limits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np
from torch import nn

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.analysis.group import Group
from fxprune.errors import FxpruneError, PlanError
from fxprune.graph.program import Program, named_tensors
from fxprune.plan import Plan, plan_removal
from fxprune.plan.limits import Limits
from fxprune.remark import Remark
from fxprune.stand_in import runs_alike
from fxprune.write_back.attempt import ForwardError
from fxprune.write_back.original import Original
from fxprune.write_back.rebuild import Builder, ComputedBufferError
from fxprune.write_back.ties import (
    Tie,
    by_axis,
    by_leaf,
    by_pattern,
    clusters,
    rows,
    ties_of_config,
)
from fxprune.write_back.write import Written, written

Decide = Callable[[Limits], tuple[Plan, list[Remark]]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A plan that the class of a model expresses.

    Attributes:
        plan: the plan.
        remarks: on groups that stay whole or are tied, and why.
        model: the smaller model.
    """

    plan: Plan
    remarks: list[Remark]
    model: nn.Module


@dataclass(eq=False)
class Fit:
    """What the class of one model can express.

    Where the class is built from a config, a plan counts as expressed only if the config says its sizes: then groups
    of the same name in all layers are tied, and the width with the heads where it is heads times head size.
    Elsewhere groups are free where all of them fit, or else those that share an axis are tied, as the halves of a
    chunk are. Where this does not fit either, groups are tied only if they do not fit alone and fit together: those
    that share an axis, those of the same name, or a width with all heads, as in modules of torch.

    Args:
        model: the model that was captured.
        program: what was captured.
        axes: its labels.
        groups: of these.

    Raises:
        PlanError: the program is of another model.
    """

    model: nn.Module
    program: Program
    axes: Axes
    groups: Sequence[Group]
    _whole: dict[str, str] = field(default_factory=dict)
    _ties: list[Tie] = field(default_factory=list)
    _steps: dict[str, int] = field(default_factory=dict)
    _alone: dict[str, str] = field(default_factory=dict)
    _asked: dict[tuple[Tie, ...], FxpruneError | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = named_tensors(self.model)
        for name, tensor in self.program.tensors().items():
            if name in tensors and tensors[name].shape != tensor.shape:
                raise PlanError(
                    "fits= is not the model that was captured",
                    where=name,
                    why=f"its shape is {tuple(tensors[name].shape)}, and {tuple(tensor.shape)} was captured",
                    do="pass the model itself",
                )
        self._builder = Builder.of(self.model)
        self._original = Original(self.model, self.program, self._builder)

    @property
    def limits(self) -> Limits:
        """What has been learned."""
        ties = tuple(tuple(g.name for g in tie) for tie in self._ties if len(tie) > 1)
        return Limits(dict(self._whole), ties, dict(self._steps))

    def decide(self, decide: Decide) -> Fitted:
        """The plan of a decision within limits that the class expresses.

        Where a plan does not fit after all, the first group with which it does not is to keep multiples of a
        larger number, or is excluded, and the decision is made again: it ends with the groups.

        Raises:
            BudgetError: the decision finds no plan within the limits.
        """
        with runs_alike():
            self.learn()
            while True:
                plan, left = decide(self.limits)
                result = self._try(plan, learning=False)
                if isinstance(result, Written):
                    return Fitted(plan, [*left, *self._remarks(), *result.remarks], result.model)
                self._exclude(plan.removed)

    def learn(self) -> None:
        """Asks the class which groups may lose units, alone or together."""
        single: list[Tie] = [(g,) for g in self.groups if len(g) > 1]
        if self._why(single) is None:
            self._ties = single
            return
        if self._builder is not None:
            alike = clusters(single, by_pattern)
            fit, self._whole = self._sort(alike)
            fit += self._fitting(ties_of_config(self._builder, self._failed(alike)))
            fit += self._fitting(_several(self._failed(alike)))
            self._ties = self._together(fit)
            return
        parts = clusters(single, by_axis)
        fit, self._whole = self._sort(parts)
        apart: list[Tie] = [(g,) for t in parts if len(t) > 1 for g in t if g.name in self._whole]
        fit += self._found(apart)
        self._alone = dict(self._whole)
        bad: list[Tie] = [(g,) for g in self.groups if g.name in self._whole]
        fit += self._found([tie for tie in clusters(bad, by_pattern) if len(tie) > 1])
        bad = [(g,) for g in self.groups if g.name in self._whole]
        fit += self._fitting(_several(clusters(bad, by_leaf)))
        self._ties = self._together(fit)

    def _found(self, ties: list[Tie]) -> list[Tie]:
        """Those that fit of some ties whose groups did not fit otherwise."""
        fit, _ = self._sort(ties)
        for group in chain.from_iterable(fit):
            del self._whole[group.name]
        return fit

    def _failed(self, ties: Sequence[Tie]) -> list[Tie]:
        """Those of which nothing that fits has been found yet."""
        return [t for t in ties if t[0].name in self._whole]

    def _fitting(self, ties: Iterable[Tie]) -> list[Tie]:
        """Those that fit of some ties whose groups did not fit otherwise, each group in one of them."""
        found: list[Tie] = []
        for tie in ties:
            if any(g in t for t in found for g in tie):
                continue
            error = self._error([tie])
            if error is None:
                found.append(tie)
                for group in tie:
                    del self._whole[group.name]
            elif isinstance(error, ComputedBufferError):
                self._whole.update({g.name: _reason(error) for g in tie})
        return found

    def _together(self, ties: list[Tie]) -> list[Tie]:
        """Those ties that fit with all others."""
        while ties and (why := self._why(ties)) is not None:
            bad = _first_bad(len(ties), partial(self._fail, ties))
            self._whole.update({g.name: why for g in ties[bad]})
            ties = [t for i, t in enumerate(ties) if i != bad]
        return ties

    def _sort(self, ties: list[Tie]) -> tuple[list[Tie], dict[str, str]]:
        """Parts ties into those that fit, each alone or with others, and the groups of those that do not, with why."""
        error = self._error(ties) if ties else None
        if error is None:
            return ties, {}
        if len(ties) == 1:
            return [], {g.name: _reason(error) for g in ties[0]}
        one, other = _parted(ties, error)
        (a, worse), (b, worst) = self._sort(one), self._sort(other)
        return [*a, *b], {**worse, **worst}

    def _why(self, ties: Sequence[Tie]) -> str | None:
        """Why the class cannot lose units of some ties; None where it can."""
        error = self._error(ties)
        return None if error is None else _reason(error)

    def _error(self, ties: Sequence[Tie]) -> FxpruneError | None:
        """What happens where the class loses a quarter of some ties and half of the others; None where it can.

        Unequal numbers, and not single units: of three parts of a chunk, the last may be one shorter.
        """
        key = tuple(ties)
        if key not in self._asked:
            rng = np.random.default_rng(0)
            units: list[IntArray] = [np.zeros(0, np.int64)]
            for i, tie in enumerate(ties):
                steps = rows(tie)
                count = max(1, steps // (4 - 2 * (i % 2)))
                units += [rng.choice(g.units, count * len(g) // steps, replace=False) for g in tie]
            found = self._try(plan_removal(self.program, self.axes, np.concatenate(units)))
            self._asked[key] = None if isinstance(found, Written) else found
        return self._asked[key]

    def _fail(self, ties: Sequence[Tie], count: int) -> bool:
        """Whether the first ties do not fit together."""
        return self._why(ties[:count]) is not None

    def _try(self, plan: Plan, *, learning: bool = True) -> Written[Any] | FxpruneError:
        """The smaller model; or why there is none."""
        try:
            return written(
                self.model, plan, config_only=True, original=self._original, learning=learning
            )
        except FxpruneError as error:
            return _without_frames(error)

    def _exclude(self, removed: IntArray) -> None:
        """Excludes the first tie with which the removal does not fit, or lets it go in larger steps."""
        gone = np.zeros(self.axes.n_units, bool)
        gone[removed] = True
        ties = [t for t in self._ties if any(gone[g.units].any() for g in t)]

        def fails(n: int) -> bool:
            units = [g.units[gone[g.units]] for t in ties[:n] for g in t]
            plan = plan_removal(self.program, self.axes, np.concatenate(units))
            return not isinstance(self._try(plan), Written)

        at = _first_bad(len(ties), fails)
        bad = ties[at]
        for step in (2 * self._steps.get(bad[0].name, 1), 4, 8, 16, 32, 64):
            if step > self._steps.get(bad[0].name, 1) and self._fits_in_steps(
                ties[:at], bad, gone, step
            ):
                self._steps.update({g.name: step for g in bad})
                return
        why = "the class cannot express the plan with it, though it can lose units of it alone"
        self._whole.update({g.name: why for g in bad})
        self._ties = [t for t in self._ties if t is not bad]

    def _fits_in_steps(self, good: list[Tie], bad: Tie, gone: BoolArray, step: int) -> bool:
        """Whether a tie can go with others if it keeps a multiple of `step` units."""
        steps = rows(bad)
        kept = int((~gone[bad[0].units]).sum()) * steps // len(bad[0]) // step * step
        if not kept:
            return False
        units = [g.units[gone[g.units]] for t in good for g in t]
        units += [
            g.units[np.argsort(~gone[g.units], kind="stable")][: len(g) - kept * len(g) // steps]
            for g in bad
        ]
        plan = plan_removal(self.program, self.axes, np.concatenate(units))
        return isinstance(self._try(plan), Written)

    def _remarks(self) -> list[Remark]:
        return [
            Remark(
                "analysis",
                "fits-class.tied",
                f"{tie[0].name} and {len(tie) - 1} more",
                f"{', '.join(g.name for g in tie)} lose equal shares of their units",
                self._alone.get(
                    tie[0].name,
                    "the config has one number for all of them"
                    if self._builder is not None
                    else "the class cannot lose units of all groups freely",
                ),
            )
            for tie in self._ties
            if len(tie) > 1
        ]


def _without_frames(error: FxpruneError) -> FxpruneError:
    """An error to be kept: its frames, and those of what caused it, would keep the smaller models in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _reason(error: FxpruneError) -> str:
    return ": ".join(filter(None, (error.what, error.why)))


def _parted(ties: list[Tie], error: FxpruneError) -> tuple[list[Tie], list[Tie]]:
    """Ties that do not fit together, in two parts: those that cut the module in which the forward stopped, and others.

    Of the modules that it was in, the outermost that at most half of the ties cut; where there is none, halves.
    """
    for path in error.inside if isinstance(error, ForwardError) else ():
        inner = [
            t for t in ties if any(m.param.startswith(f"{path}.") for g in t for m in g.members)
        ]
        if 0 < len(inner) <= len(ties) // 2:
            return inner, [t for t in ties if t not in inner]
    middle = len(ties) // 2
    return ties[:middle], ties[middle:]


def _several(ties: Sequence[Tie]) -> Iterator[Tie]:
    """Two or three ties as one, some with several units for each of another's: a width and its heads."""
    for several in (*combinations(ties, 2), *combinations(ties, 3)):
        joined = tuple(chain.from_iterable(several))
        if 1 < min(len(g) for g in joined) == rows(joined):
            yield joined


def _first_bad(count: int, fails: Callable[[int], bool]) -> int:
    """The place of the last one of the shortest beginning that fails, where all of them fail."""
    return bisect_left(range(1, count), True, key=fails)
