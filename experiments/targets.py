"""What rows are held to: statements that the rows themselves decide."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Protocol

from experiments.columns import Cells

# An arm that is slower than another by more than this is not at equal latency.
SLOWER = 1.05


@dataclass(frozen=True)
class Verdict:
    """What rows say to a target.

    Attributes:
        target: in words.
        reached: whether they reach it; None where there is nothing to compare.
        figures: the numbers behind it.
    """

    target: str
    reached: bool | None
    figures: str


class Target(Protocol):
    """A statement about the arms of a task."""

    def judge(self, cells: Cells) -> Verdict:
        """Decides it; `reached` is None while runs or latencies are missing."""


@dataclass(frozen=True)
class Above:
    """The mean accuracy of an arm over that of another, seed by seed.

    Attributes:
        arm: its name.
        other: name of the other.
        points: how far above it has to be, in points of accuracy; below 0: how far below it may be.
        equal_latency: whether it counts only if the arm is no slower than the other.
    """

    arm: str
    other: str
    points: float = 0.0
    equal_latency: bool = False

    def judge(self, cells: Cells) -> Verdict:
        where = (
            f"at least {self.points:g} above" if self.points >= 0 else f"within {-self.points:g} of"
        )
        words = f"{self.arm}: {where} {self.other}" + ", no slower" * self.equal_latency
        mine, theirs = cells.of(self.arm, "test"), cells.of(self.other, "test")
        seeds = sorted(mine.keys() & theirs.keys())
        if not seeds:
            return Verdict(words, None, "no runs yet")
        gaps = [mine[s] - theirs[s] for s in seeds]
        pair = (mean(mine[s] for s in seeds), mean(theirs[s] for s in seeds))
        figures = f"{pair[0]:.2f} against {pair[1]:.2f}: {spread(gaps, 2, sign=True)} points"
        good = mean(gaps) >= self.points
        if not self.equal_latency:
            return Verdict(words, good, f"{figures} ({_seeds(seeds)})")
        fast, slow = cells.of(self.arm, "latency"), cells.of(self.other, "latency")
        both = sorted(fast.keys() & slow.keys() & set(seeds))
        if not both:
            return Verdict(words, None, f"{figures}; latencies are not measured yet")
        a, b = mean(fast[s] for s in both), mean(slow[s] for s in both)
        figures += f", at {a:.2f} and {b:.2f} of the latency ({_seeds(seeds)})"
        return Verdict(words, good and a <= SLOWER * b, figures)


@dataclass(frozen=True)
class AtMost:
    """The mean of a column of an arm, see `columns.COLUMNS`, is no larger than a limit."""

    arm: str
    column: str
    limit: float

    def judge(self, cells: Cells) -> Verdict:
        words = f"{self.arm}: {self.column} at most {self.limit:g}"
        found = list(cells.of(self.arm, self.column).values())
        if not found:
            return Verdict(words, None, "not measured yet")
        good = mean(found) <= self.limit
        return Verdict(words, good, f"{spread(found, 2)} ({_seeds(found)})")


@dataclass(frozen=True)
class Near:
    """The mean of a column of an arm is so near a value, as a share of it."""

    arm: str
    column: str
    value: float
    within: float = 0.03

    def judge(self, cells: Cells) -> Verdict:
        words = f"{self.arm}: {self.column} {self.value:g}, within {self.within:.0%}"
        found = list(cells.of(self.arm, self.column).values())
        if not found:
            return Verdict(words, None, "not measured yet")
        good = abs(mean(found) / self.value - 1) <= self.within
        return Verdict(words, good, f"{spread(found, 3)} ({_seeds(found)})")


def _seeds(found: Sized) -> str:
    return f"{len(found)} seed" + "s" * (len(found) != 1)


def spread(values: list[float], digits: int, *, sign: bool = False) -> str:
    """Mean and standard deviation."""
    plus = "+" if sign else ""
    around = f" ± {stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{plus},.{digits}f}{around}"
