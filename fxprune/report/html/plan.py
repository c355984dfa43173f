"""What the plan removes of which tensor, and what it changes in the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.markup import Html, join, table, tag
from fxprune.plan import Plan
from fxprune.plan.json import show_ranges
from fxprune.plan.plan import Edit, Rescale, ScaleArgument
from fxprune.report.html.filters import filters
from fxprune.report.html.numbers import share
from fxprune.report.html.page import Section, listed

_COLUMNS = 128  # of a strip, at most
_LONGEST = 2000  # characters of a list of positions
_SHORT = 4  # tensors that are seen without a click
_ABOUT = (
    "Axes that lose the same positions share a line. In the strip each column stands for positions next to each "
    "other, and its height for how many of them go. The plan as a file, with every position, is what plan.save writes."
)


def plan_diff(plan: Plan | None) -> Section:
    """Which positions of which tensors go; nothing without a plan."""
    if plan is None:
        return Section("plan", "Plan", Html())
    alike: dict[tuple[int, bytes], list[tuple[str, int]]] = {}
    for name, cut in plan.kept.items():
        for axis, kept in cut.items():
            key = plan.lengths[name][axis], kept.astype("<i8").tobytes()
            alike.setdefault(key, []).append((name, axis))
    lines = [_line(size, np.frombuffer(kept, "<i8"), axes) for (size, kept), axes in alike.items()]
    nothing = tag("p", "Nothing is removed.", class_="note")
    parts = [
        tag("p", _ABOUT),
        filters("plan", (), {}, "a tensor"),
        tag("div", *lines, id="plan-list"),
        _edits(plan.edits),
    ]
    return Section("plan", "Plan: what of which tensor goes", join(parts) if lines else nothing)


def _line(size: int, kept: IntArray, axes: Sequence[tuple[str, int]]) -> Html:
    gone = np.ones(size, bool)
    gone[kept] = False
    positions = show_ranges(np.flatnonzero(gone))
    text = positions[:_LONGEST].rpartition(",")[0] if len(positions) > _LONGEST else positions
    more = "" if text == positions else f" and more, {size - len(kept):,} in all"
    removed = tag(
        "details",
        tag("summary", f"the {size - len(kept):,} positions that go"),
        tag("p", text, more),
    )
    numbers = tag("p", f"{size:,} → {len(kept):,}, {share(len(kept), size)} left")
    return tag("div", _names(axes), _strip(gone), numbers, removed, class_="item cut")


def _names(axes: Sequence[tuple[str, int]]) -> Html:
    names = [f"{name}:{axis}" for name, axis in axes]
    if len(names) <= _SHORT:
        return tag("p", listed(names))
    title = tag("summary", tag("code", names[0]), f" and {len(names) - 1:,} more axes")
    return tag("details", title, tag("p", listed(names)))


def _strip(gone: np.ndarray) -> Html:
    """A picture of an axis: how many of the positions in each column go."""
    bounds = np.linspace(0, len(gone), min(len(gone), _COLUMNS) + 1).astype(int)
    shares = np.add.reduceat(gone, bounds[:-1], dtype=float) / np.diff(bounds)
    steps = np.flatnonzero(np.diff(shares)) + 1
    path = ""
    for start, stop in zip([0, *steps], [*steps, len(shares)], strict=True):
        if shares[start]:
            height = 10 * shares[start]
            path += f"M{start} {10 - height:.3g}h{stop - start}V10H{start}z"
    return tag(
        "svg",
        tag("path", d=path),
        viewBox=f"0 0 {len(shares)} 10",
        preserveAspectRatio="none",
        class_="strip",
        aria_hidden="true",
    )


def _edits(edits: Sequence[Edit]) -> Html:
    """The changes of the graph; nodes that are changed alike share a line."""
    if not edits:
        return Html()
    alike: dict[tuple[str, str], list[str]] = {}
    for edit in edits:
        alike.setdefault(_said(edit), []).append(edit.node)
    lines = [(*said, listed(nodes)) for said, nodes in alike.items()]
    return tag(
        "details",
        tag("summary", f"{len(edits):,} changes of the graph that follow from it"),
        table(["what", "change", "nodes"], lines, class_="ties edits"),
    )


def _said(edit: Edit) -> tuple[str, str]:
    if isinstance(edit, Rescale):
        return "output", f"times {edit.numerator}/{edit.denominator}"
    place = edit.argument if edit.index is None else f"{edit.argument}[{edit.index}]"
    if isinstance(edit, ScaleArgument):
        return place, f"times {edit.numerator}/{edit.denominator}"
    return place, f"{edit.old} → {edit.new}"
