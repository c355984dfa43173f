"""The frame of the page: its head, the links to its sections, its style and its script.

The page loads nothing, and its script holds no data: what is filtered stands in the page. Its own policy forbids all
that is not in it; a script other than this one would not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

from fxprune import __version__
from fxprune.markup import Html, join, tag


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        id: which links lead to it.
        title: its heading.
        body: what it shows; nothing, where there is nothing to show: the page then has no such section.
    """

    id: str
    title: str
    body: Html


def write_page(title: str, subtitle: str, sections: Iterable[Section]) -> str:
    """The whole page.

    Args:
        title: of the page.
        subtitle: stands below.
        sections: in order.
    """
    shown = [s for s in sections if s.body]
    links = (tag("li", tag("a", s.title, href=f"#{s.id}")) for s in shown)
    button = tag("button", "Dark or light", type="button", id="theme", hidden=True)
    header = tag(
        "header",
        tag("a", "Skip to the report", href="#report", class_="skip"),
        tag("h1", title),
        tag("p", subtitle),
        tag("nav", tag("ul", *links), button, aria_label="Sections"),
    )
    main = tag("main", *map(_section, shown), id="report", tabindex="-1")
    footer = tag("footer", f"Written by fxprune {__version__}.")
    script, style = Html(_resource("page.js")), Html(_resource("page.css"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    body = tag("body", header, main, footer, tag("script", script))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(section: Section) -> Html:
    heading = tag("h2", section.title, id=f"{section.id}-title")
    return tag(
        "section", heading, section.body, id=section.id, aria_labelledby=f"{section.id}-title"
    )


def _policy(script: str) -> str:
    """Forbids everything but styles, and the one script by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def listed(parts: Iterable[object]) -> Html:
    """Codes, separated by commas."""
    return join((tag("code", p) for p in parts), ", ")
