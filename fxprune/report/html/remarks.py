"""The remarks; those that say the same of several places are one item."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from fxprune.markup import Html, join, tag
from fxprune.remark import Kind, Remark
from fxprune.report.html.filters import filters
from fxprune.report.html.page import Section, listed

_NAMES = {
    "applied": "applied: something was done",
    "missed": "missed: something could not be done",
    "analysis": "analysis: something to know",
}
_SHORT = 3  # places that are seen without a click


def remarks(found: Sequence[Remark]) -> Section:
    """Every remark, to be filtered by kind, code and text."""
    alike: dict[Remark, list[str]] = {}
    for r in found:
        alike.setdefault(Remark(r.kind, r.code, "", r.what, r.why, r.do), []).append(r.where)
    if not alike:
        return Section("remarks", "Remarks", Html())
    kinds = [k for k in get_args(Kind) if any(r.kind == k for r in alike)]
    items = (_item(remark, places) for remark, places in alike.items())
    parts = [
        filters("remarks", kinds, _NAMES, "a text", (r.code for r in alike)),
        tag("div", *items, id="remarks-list"),
    ]
    return Section("remarks", f"Remarks ({len(found):,})", join(parts))


def _item(remark: Remark, places: Sequence[str]) -> Html:
    head = [
        tag("span", remark.kind, class_=f"badge {remark.kind}"),
        " ",
        tag("code", remark.code),
        f" {remark.what}",
    ]
    parts: list[Html] = [tag("h3", *head), _places(places)]
    parts += [
        tag("p", tag("strong", word), f" {text}")
        for word, text in (("why", remark.why), ("do", remark.do))
        if text
    ]
    return tag(
        "article", *parts, class_="item remark", data_kind=remark.kind, data_code=remark.code
    )


def _places(places: Iterable[str]) -> Html:
    unique = list(dict.fromkeys(p for p in places if p))
    if len(unique) <= _SHORT:
        return tag("p", listed(unique)) if unique else Html()
    title = tag("summary", f"{len(unique):,} places")
    return tag("details", title, tag("p", listed(unique)))
