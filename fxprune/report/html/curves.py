"""Curves as pictures, with their numbers as a table below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxprune.markup import Html, join, table, tag
from fxprune.report.curves import Curves, Points
from fxprune.report.html.page import Section

_WIDTH, _HEIGHT = 640, 320  # of a picture
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 12, 48  # around the area in which points lie
_LOOKS = 6  # colours, dashes and marks; a series after the last one looks as the first
_MOST_POINTS = 400  # of a series, in picture and table


def curves(found: Sequence[Curves]) -> Section:
    """A picture for each; nothing where there are none."""
    return Section("curves", "Curves", join(_figure(c, i) for i, c in enumerate(found)))


def _figure(given: Curves, number: int) -> Html:
    series = {name: thinned(points) for name, points in given.series.items() if points}
    thin = any(len(series[n]) < len(given.series[n]) for n in series)
    note = "Of long series, some points are left out. " if thin else ""
    legend = (tag("li", _sample(i), f" {name}") for i, name in enumerate(series))
    rows = [(name, _number(x), _number(y)) for name, points in series.items() for x, y in points]
    numbers = tag(
        "details",
        tag("summary", "The numbers"),
        table(["series", given.x, given.y], rows, class_="ties values"),
    )
    title = f"curves-{number}"
    return tag(
        "figure",
        tag("figcaption", tag("h3", given.title, id=title)),
        _picture(given, series, title),
        tag("ul", *legend, class_="legend"),
        tag("p", note, given.note) if note or given.note else "",
        numbers,
    )


def thinned(points: Points) -> Points:
    """Of many points some at equal distances, the last one among them."""
    step = math.ceil(len(points) / _MOST_POINTS)
    return [*points[:-1:step], points[-1]]


@dataclass(frozen=True)
class _Scale:
    """From values to places in the picture.

    Attributes:
        low: the value at `start`.
        high: the value at `end`.
        start: a place.
        end: a place.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values that span a range: 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def _picture(given: Curves, series: dict[str, Points], title: str) -> Html:
    points = [p for found in series.values() for p in found]
    across, up = (ticks(min(values), max(values)) for values in zip(*points, strict=True))
    x = _Scale(across[0], across[-1], _LEFT, _WIDTH - _RIGHT)
    y = _Scale(up[0], up[-1], _HEIGHT - _BOTTOM, _TOP)
    lines = (_series(i, name, found, x, y) for i, (name, found) in enumerate(series.items()))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    return tag(
        "svg",
        *_grid(across, up, x, y),
        tag("text", given.x, x=middle[0], y=_HEIGHT - 8, text_anchor="middle"),
        tag(
            "text",
            given.y,
            transform=f"translate(14 {middle[1]}) rotate(-90)",
            text_anchor="middle",
        ),
        *lines,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        class_="curves",
        role="img",
        aria_labelledby=title,
    )


def _grid(across: Sequence[float], up: Sequence[float], x: _Scale, y: _Scale) -> Iterator[Html]:
    for value in across:
        yield tag("path", d=f"M{x(value)} {_TOP}V{_HEIGHT - _BOTTOM}", class_="grid")
        yield tag(
            "text", _number(value), x=x(value), y=_HEIGHT - _BOTTOM + 16, text_anchor="middle"
        )
    for value in up:
        yield tag("path", d=f"M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}", class_="grid")
        yield tag("text", _number(value), x=_LEFT - 6, y=y(value) + 4, text_anchor="end")


def _series(i: int, name: str, points: Points, x: _Scale, y: _Scale) -> Html:
    line = "L".join(f"{x(a)} {y(b)}" for a, b in points)
    marks = (_mark(i, x(a), y(b), f"{name}: {_number(a)}, {_number(b)}") for a, b in points)
    return tag("g", tag("path", d=f"M{line}", class_="line"), *marks, class_=f"look{i % _LOOKS}")


def _mark(i: int, x: float, y: float, title: str) -> Html:
    """A point; its shape tells the series apart where colours do not."""
    shapes = (
        "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
        "m-3 -3h6v6h-6z",
        "m0 -4.5l4 7.5h-8z",
        "m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
        "m0 4.5l4 -7.5h-8z",
        "m-1.2 -4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",
    )
    inside = [tag("title", title)] if title else []
    return tag("path", *inside, d=f"M{x} {y}{shapes[i % _LOOKS]}", class_="mark")


def _sample(i: int) -> Html:
    """What a series looks like, for the legend."""
    line = tag("path", d="M0 8H32", class_="line")
    group = tag("g", line, _mark(i, 16, 8, ""), class_=f"look{i % _LOOKS}")
    return tag(
        "svg",
        group,
        viewBox="0 0 32 16",
        width="32",
        height="16",
        aria_hidden="true",
        class_="curves sample",
    )


def _number(value: float) -> str:
    return f"{value:.6g}"
