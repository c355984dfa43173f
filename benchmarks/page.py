"""Blocks of a page that scripts write; the text around them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

END = "<!-- end -->\n"


def renew(file: Path, blocks: Mapping[str, str], *, titled: bool) -> None:
    """Puts blocks of text into a page, each in the place of the one of its name; all else stays.

    Args:
        file: the page, Markdown.
        blocks: name -> text.
        titled: a block that is new comes with a heading of its name.
    """
    text = file.read_text() if file.exists() else ""
    for name, content in blocks.items():
        text = _put(text, name, content, titled)
    file.write_text(text)


def _put(text: str, name: str, content: str, titled: bool) -> str:
    start = f"<!-- {name} -->\n"
    block = f"{start}{content}\n{END}"
    found = re.search(re.escape(start) + r".*?" + re.escape(END), text, re.DOTALL)
    if found:
        return text[: found.start()] + block + text[found.end() :]
    title = f"## {name}\n\n" if titled else ""
    return f"{text.rstrip()}\n\n{title}{block}".lstrip()
