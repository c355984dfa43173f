"""What chooses among the items of a section; without scripts it is not there, and all items are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fxprune.markup import Html, join, tag


def filters(
    section: str,
    kinds: Sequence[str],
    names: Mapping[str, str],
    sought: str,
    codes: Iterable[str] = (),
) -> Html:
    """A box for each kind, a choice of codes, and a field for a text.

    Args:
        section: its id; the items are in the element with this id and `-list`, of class `item`, with `data-kind` and
            `data-code`.
        kinds: that occur.
        names: of the kinds, for people.
        sought: what the text looks for.
        codes: that occur.
    """
    boxes = (
        tag("label", tag("input", type="checkbox", value=kind, checked=True), " ", names[kind])
        for kind in kinds
    )
    parts = [tag("fieldset", tag("legend", "show"), join(boxes, " "))] if len(kinds) > 1 else []
    if len(listed := sorted(set(codes))) > 1:
        options = [tag("option", "all", value="")] + [tag("option", c, value=c) for c in listed]
        parts.append(tag("label", "code ", tag("select", *options)))
    field = tag("input", type="search", autocomplete="off", spellcheck="false")
    parts += [tag("label", f"find {sought} ", field), tag("output", aria_live="polite")]
    return tag("form", *parts, class_="filter", data_for=f"{section}-list", hidden=True)
