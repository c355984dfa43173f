"""The first section: what was, what is left."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.markup import Html, join, tag
from fxprune.report.group_row import GroupRow
from fxprune.report.html.numbers import bar, in_bytes, share
from fxprune.report.html.page import Section
from fxprune.report.summary import Comparison
from fxprune.verify import Check


def totals(comparison: Comparison, groups: Sequence[GroupRow], checks: Sequence[Check]) -> Section:
    """Parameters, MACs and bytes before and after, how many groups lose units, and whether it was verified."""
    a, b = comparison.before.total, comparison.after.total
    cards = [
        _card("Parameters", f"{a.parameters:,}", f"{b.parameters:,}", a.parameters, b.parameters),
        _card("MACs", f"{a.macs:,}", f"{b.macs:,}", a.macs, b.macs),
        _card("Bytes of weights", in_bytes(a.bytes), in_bytes(b.bytes), a.bytes, b.bytes),
    ]
    if groups:
        cut = sum(g.kept < g.units for g in groups)
        units, kept = sum(g.units for g in groups), sum(g.kept for g in groups)
        cards.append(_card("Units", f"{units:,}", f"{kept:,}", units, kept))
        cards.append(_fact("Groups that lose units", f"{cut} of {len(groups)}"))
    cards.append(_fact("Verification", _verdict(checks)))
    return Section("totals", "Totals", tag("dl", *cards, class_="cards"))


def _card(name: str, before: str, after: str, a: int, b: int) -> Html:
    left = f"{share(b, a)} of {before}" if a else "none before"
    return _fact(name, join([tag("strong", after), bar(a, b, a), left]))


def _fact(name: str, value: object) -> Html:
    return tag("div", tag("dt", name), tag("dd", value))


def _verdict(checks: Sequence[Check]) -> Html:
    if not checks:
        return tag("strong", "not verified", class_="bad")
    bad = sum(not c.ok for c in checks)
    if bad:
        return tag("strong", f"{bad} of {len(checks)} checks differ", class_="bad")
    blind = any(c.blind for c in checks)
    text = f"{len(checks)} of {len(checks)} checks agree"
    return tag("strong", f"{text}, but see below" if blind else text, class_="good")
