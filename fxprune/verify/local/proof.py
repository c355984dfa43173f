"""Compares two programs region by region: each region of both is given the same random values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import describe
from fxprune.verify.check import Check, Judged, relative_error
from fxprune.verify.local.matching import Pair
from fxprune.verify.local.obstacles import Obstacles
from fxprune.verify.local.places import fewer_places
from fxprune.verify.local.regions import Cutter, Region
from fxprune.verify.local.seen import Seen, Shape

_ROUNDS = 3  # how often a region is tried, each time with more of what comes before it


class CannotCompareError(Exception):
    """The two cannot be compared region by region, or differ there: the whole has to decide. Says why."""


@dataclass(frozen=True)
class Sides:
    """Two programs, and what agreement means between them.

    Attributes:
        before: runs the program before.
        after: runs the program after.
        feeds: for a pair of nodes that do the same, what is fed to them place by place; None for any other pair.
        kept: what the program after should have of a value of the program before; None where that is not known.
        tolerance: the largest relative error allowed in a region.
    """

    before: Evaluator
    after: Evaluator
    feeds: Callable[[Pair], list[Pair] | None]
    kept: Callable[[fx.Node, Any], Any]
    tolerance: Callable[[Region], float]


@dataclass(frozen=True)
class Proof:
    """Compares two programs region by region.

    Attributes:
        sides: the two programs.
        cutter: cuts regions out of them.
        obstacles: says which regions cannot be cut.
        seen: what the values of the program before look like; learns what those of the program after do.
        lengths: of the free sizes, by name, at which regions are run.
    """

    sides: Sides
    cutter: Cutter
    obstacles: Obstacles
    seen: Seen
    lengths: Mapping[str, int]

    def regions(self, outputs: Pair) -> list[Region]:
        """What has to agree for the outputs to agree, cut as small as it can be.

        Raises:
            CannotCompareError: a region cannot be cut.
        """
        groups = self.cutter.together(self._claims([outputs], set()))
        found = [self.cutter.region(group) for group in groups]
        for region in found:
            self._refuse(region)
        return found

    def _claims(self, pairs: Iterable[Pair], known: set[Pair]) -> list[Pair]:
        """The pairs of values that have to agree although the nodes do not do the same, for others to agree."""
        todo, found = list(pairs), list[Pair]()
        while todo:
            pair = todo.pop()
            if pair in known:
                continue
            known.add(pair)
            if (fed := self.sides.feeds(pair)) is not None:
                todo += fed
            else:
                found.append(pair)
                todo += self.cutter.region([pair]).cuts
        return found

    def check(self, outputs: Pair, *, against: str, batches: tuple[int, ...]) -> Check:
        """Compares all regions.

        Args:
            outputs: the output nodes of both.
            against: what the program before is, in words.
            batches: for the report, the number of rows that belongs to `lengths`.

        Raises:
            CannotCompareError: a region cannot be cut, or differs even with much of what comes before it.
        """
        known: set[Pair] = set()
        todo: list[Pair] = self._claims([outputs], known)
        worst, allowed, count = Judged(0.0, torch.float64, ""), 1e-9, 0
        while todo:
            further: list[Pair] = []
            for group in self.cutter.together(todo):
                region, judged = self._settle(group)
                count += 1
                limit = self.sides.tolerance(region)
                if judged.error / limit >= worst.error / allowed:
                    worst, allowed = judged, limit
                further += region.cuts
            todo = self._claims(further, known)
        return Check(
            ok=True,
            max_relative_error=worst.error,
            dtype=str(worst.dtype).removeprefix("torch."),
            tolerance=allowed,
            worst_output=worst.name or "no region",
            first_bad_node="",
            groups=(),
            batches=batches,
            against=against,
            regions=count,
        )

    def _settle(self, claims: list[Pair]) -> tuple[Region, Judged]:
        """A region that agrees, and how well; more of what comes before is taken in where a small one differs."""
        whole, differs = frozenset[fx.Node](), ""
        for _ in range(_ROUNDS):
            region = self.cutter.region(claims, whole)
            self._refuse(region)
            try:
                judged = self._compare(region)
            except Exception as error:  # at values that the network itself would not meet
                differs = f"a part cannot be run by itself: {type(error).__name__}"
            else:
                if judged.error <= self.sides.tolerance(region):
                    return region, judged
                differs = f"{judged.name} differs on random values by {judged.error:.1e}"
            grown = whole | {a for a, _ in region.cuts}
            if all(a.op == "placeholder" for a in grown - whole):
                break
            whole = grown
        raise CannotCompareError(differs)

    def _refuse(self, region: Region) -> None:
        nodes = (*region.before, *region.after, *(n for pair in region.cuts for n in pair))
        if why := self.obstacles.of_nodes(nodes):
            raise CannotCompareError(why)

    def _compare(self, region: Region) -> Judged:
        """The largest error of the values that leave a region; at fewer places where it agrees at these."""
        shapes = {a: self.seen.shape(a, self.lengths) for a, _ in region.cuts}
        for fewer in fewer_places(shapes):
            with suppress(Exception):  # such as for sizes that are written in the graph
                judged = self._run(region, fewer)
                if judged.error <= self.sides.tolerance(region):
                    return judged
        return self._run(region, shapes)

    def _run(self, region: Region, shapes: Mapping[fx.Node, Shape | None]) -> Judged:
        given = {a: self.seen.draw(a, self.lengths, shapes[a]) for a, _ in region.cuts}
        if any(x is None for x in given.values()):
            raise CannotCompareError("the sizes of a value depend on more than the inputs'")
        theirs = {b: self.sides.kept(a, given[a]) for a, b in region.cuts}
        self.sides.after.observe = self.seen.note_new
        ours, found = ([pair[i] for pair in region.claims] for i in (0, 1))
        wanted = self.sides.before.compute_part(region.before, given, ours)
        got = self.sides.after.compute_part(region.after, theirs, found)
        worst = Judged(0.0, torch.float64, "")
        for (a, b), x, y in zip(region.claims, wanted, got, strict=True):
            error = relative_error(y, self.sides.kept(a, x))
            if not worst.name or error > worst.error:
                worst = Judged(error, torch.float64, describe(b))
        return worst
