"""The dependency groups: what each loses, and, opened, what is tied to what and through which operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fxprune.analysis.explain import Reason
from fxprune.markup import Html, join, table, tag
from fxprune.report.group_row import GroupRow
from fxprune.report.html.filters import filters
from fxprune.report.html.numbers import bar, share
from fxprune.report.html.page import Section

Ties = Mapping[str, Sequence[Reason]]

_WORDS = (
    (
        "unit",
        "the smallest thing that can be removed: a channel, a head or a feature, with all that depends on it",
    ),
    ("group", "units that cut the same axes of the same tensors"),
    ("producer", "an axis that is an output of a product: its positions make the unit"),
    ("consumer", "an axis that a product sums over: its positions read the unit"),
    ("elementwise", "any other axis that goes along, as those of norms and biases do"),
    ("exact", "the removal leaves the statistics of every norm as they are"),
)
_NO_TIES = (
    "What is tied to what is not shown: this page was written without the graph of the network. A model that was "
    "pruned in parts is saved without one; a saved model of your own class is built and captured with --trust. In "
    "Python, outcome.report.to_html() has the graph."
)


def groups(rows: Sequence[GroupRow], ties: Ties | None, frozen: Sequence[str]) -> Section:
    """Every group, those that lose units and the others.

    Args:
        rows: the groups.
        ties: by the name of a group, every axis that it cuts; None where no graph is known.
        frozen: why other axes stay.
    """
    if not rows:
        return Section("groups", "Dependency groups", Html())
    kinds = {"cut": "loses units", "whole": "stays whole"}
    states = ["cut" if g.kept < g.units else "whole" for g in rows]
    drawn = [_group(g, s, ties) for g, s in zip(rows, states, strict=True)]
    words = (tag("div", tag("dt", word), tag("dd", says)) for word, says in _WORDS)
    parts = [
        tag("details", tag("summary", "What the words mean"), tag("dl", *words, class_="words")),
        tag("p", _NO_TIES, class_="note") if ties is None else "",
        filters("groups", [k for k in kinds if k in states], kinds, "a group or a tensor"),
        tag("div", *drawn, id="groups-list"),
        _staying(frozen),
    ]
    return Section("groups", "Dependency groups", join(parts))


def _group(group: GroupRow, state: str, ties: Ties | None) -> Html:
    reasons = (ties or {}).get(group.name, ())
    amount = (
        f"{group.units:,} units" if state == "whole" else f"{group.units:,} → {group.kept:,} units"
    )
    left = share(group.kept, group.units) if state == "cut" else "all stay"
    line = [
        tag("code", group.name),
        tag("span", f"{amount}, {left}", bar(group.units, group.kept, group.units)),
        tag("span", "exact" if group.exact else "changes norm statistics"),
        tag("span", _count(reasons, ties)),
    ]
    if not reasons:
        return tag("div", *line, class_="row item", data_kind=state)
    summary = tag("summary", *line, class_="row")
    return tag("details", summary, _reasons(reasons), class_="item", data_kind=state)


def _count(reasons: Sequence[Reason], ties: Ties | None) -> str:
    if reasons or ties is None:
        return f"{len(reasons)} axes" if reasons else ""
    return "its axes are not shown: the graph at hand, of the smaller network, has no such group any more"


def _reasons(reasons: Sequence[Reason]) -> Html:
    """The axes that go together; those that are reached the same way in one line."""
    ways: dict[tuple[str, ...], list[Reason]] = {}
    for reason in reasons:
        ways.setdefault(reason.path, []).append(reason)
    lines = [(_way(path), join(_axes(found))) for path, found in ways.items()]
    return table(["tied through", "axes that lose positions with each unit"], lines, class_="ties")


def _way(path: Sequence[str]) -> Html:
    if not path:
        return Html("<em>where the unit is made</em>")
    return join((tag("code", step) for step in path), " → ")


def _axes(reasons: Sequence[Reason]) -> Iterator[Html]:
    for r in reasons:
        yield tag(
            "span", tag("code", r.param), f" axis {r.axis} ", tag("small", r.role), class_="axis"
        )


def _staying(frozen: Sequence[str]) -> Html:
    """Why axes are in no group."""
    if not frozen:
        return Html()
    lines = (tag("li", text) for text in frozen)
    return tag("details", tag("summary", "What cannot be removed, and why"), tag("ul", *lines))
