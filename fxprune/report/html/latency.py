"""The latency, where it was measured."""

from __future__ import annotations

from fxprune.markup import Html, join, table, tag
from fxprune.report.html.numbers import bar
from fxprune.report.html.page import Section
from fxprune.report.latency import Latency


def latency(found: Latency | None) -> Section:
    """Milliseconds before and after."""
    if found is None:
        return Section("latency", "Latency", Html())
    largest = max(found.before, found.after)
    lines = [
        (name, f"{ms:.2f} ms", bar(ms, ms, largest))
        for name, ms in (("before", found.before), ("after", found.after))
    ]
    return Section(
        "latency",
        "Latency",
        join([tag("p", str(found)), table(["", "median", ""], lines, class_="times")]),
    )
