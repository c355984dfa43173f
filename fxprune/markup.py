"""Pieces of HTML, in which whatever is not HTML already is escaped.

Names of modules, files and remarks come from users, and may hold anything. A text becomes part of a page only
through `tag` or `join`, which escape it; only what these made is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

# What HTML does not allow, and halves of characters, which UTF-8 has no bytes for.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_EMPTY = frozenset({"br", "input", "meta"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def join(parts: Iterable[object], between: str = "") -> Html:
    """The parts one after the other; escaped, but for those that are HTML."""
    return Html(_escaped(between).join(map(_escaped, parts)))


def tag(name: str, /, *inside: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element, as `div`.
        inside: texts, which are escaped, and HTML.
        attributes: their names, with `_` for `-` and without one at the end; None and False leave one out, True
            stands for one without a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            spelled = key.rstrip("_").replace("_", "-")
            words.append(spelled if value is True else f'{spelled}="{_escaped(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _EMPTY else f"{start}{join(inside)}</{name}>")


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: str = "",
    **attributes: object,
) -> Html:
    """A table with one line of headings; numbers stand on the right.

    Args:
        header: the headings.
        rows: the lines, each as long as the header.
        caption: what the table shows; it may be empty.
        attributes: of the table.
    """
    head = tag("tr", *(tag("th", x, scope="col") for x in header))
    body = (tag("tr", *map(_cell, row)) for row in rows)
    title = [tag("caption", caption)] if caption else []
    return tag("table", *title, tag("thead", head), tag("tbody", *body), **attributes)


def first_rows(
    header: Sequence[str], rows: Sequence[Sequence[object]], what: str, shown: int = 20
) -> Html:
    """A table for a notebook: of many rows the first ones, and how many there are."""
    more = [tag("p", f"the first {shown} of {len(rows):,} {what}")] if len(rows) > shown else []
    return join([table(header, rows[:shown]), *more])


def _cell(value: object) -> Html:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return tag("td", f"{value:,}", style="text-align:right")
    return tag("td", value)


def _escaped(value: object) -> str:
    return value if isinstance(value, Html) else escape(_NO_TEXT.sub("\ufffd", str(value)))
