"""Curves of a report: what was measured at several points, such as the loss against the share that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from fxprune.errors import OptionError
from fxprune.files.document import Entry

_LARGEST = 1e300  # a range of twice this is still a number
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """Named series of points that share two axes.

    Attributes:
        title: what they show, such as "Sensitivity by group".
        x: what the horizontal axis is, with its unit.
        y: what the vertical axis is, with its unit.
        series: name -> points (x, y), in the order in which they are joined; names and numbers as the reader sees them.
        note: how they were measured; it may be empty.

    Raises:
        OptionError: a number is not finite or beyond 1e300, or there is no point.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Points]
    note: str = ""

    def __post_init__(self) -> None:
        found = {
            name: tuple((float(x), float(y)) for x, y in points)
            for name, points in self.series.items()
        }
        object.__setattr__(self, "series", found)
        odd = [n for n, points in found.items() if any(map(_cannot_be_drawn, chain(*points)))]
        if odd or not any(found.values()):
            raise OptionError(
                f"the curves {self.title[:80]!r} cannot be drawn",
                where=", ".join(odd)[:240],
                why="a number of theirs is not finite, or very large"
                if odd
                else "they have no point",
                do="leave out what was not measured",
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the curves as plain data, from which `read_curves` restores them."""
        series = {name: [list(p) for p in points] for name, points in self.series.items()}
        return {
            "title": self.title,
            "x": self.x,
            "y": self.y,
            "series": series,
            "note": self.note,
        }


class Measured(Protocol):
    """A measurement that says itself what there is to draw, as `fp.Sensitivity` and what `fp.recover` returns."""

    def curves(self) -> Sequence[Curves]: ...


def _cannot_be_drawn(value: float) -> bool:
    return not abs(value) <= _LARGEST


def read_curves(entry: Entry) -> Curves:
    """The curves of a JSON object of `to_json`."""
    facts = entry.record("title", "x", "y", "series", "note")
    series = {
        name: tuple((p[0].number(), p[1].number()) for p in (e.items(2) for e in points.items()))
        for name, points in facts["series"].mapping().items()
    }
    if not any(series.values()):
        facts["series"].fail("has no point", "leave the curves out")
    texts = {name: facts[name].text() for name in ("title", "x", "y", "note")}
    return Curves(series=series, **texts)
