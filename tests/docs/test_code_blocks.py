"""Every example of README, CONTRIBUTING and docs/ runs: Python blocks and `fxprune` commands, page by page, in order.

What cannot run here says so in its page: `<!--- skip: next, "reason" -->`. A command with a word in capitals,
`fxprune replay DIR`, shows how one is made up and is not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from sybil import Document, Example, Region
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from fxprune.cli.main import app, main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
VERBS = "|".join(str(c.callback.__name__) for c in app.registered_commands if c.callback)
COMMAND = re.compile(rf"^(?: {{4}}|\$ )?fxprune (?P<words>(?:{VERBS}|--help)\b.*)$", re.M)
SKIP = re.compile(r"^<!--+ skip: (.*?)--+>", re.M | re.S)
MOST_LEFT_OUT = 12  # tools of other packages and several processes, which have tests of their own
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the wheel carries no docs")


def parse(page: Path) -> Document:
    """The examples of a page, on images of 64 pixels where it has 224: the same code in a tenth of the time."""
    text = (
        page.read_text(encoding="utf-8").replace("224, 224", "64, 64").replace("224x224", "64x64")
    )
    document = Document(text, str(page))
    for parser in (PythonCodeBlockParser(), SkipParser(), find_commands):
        for region in parser(document):
            document.add(region)
    return document


def find_commands(document: Document) -> Iterator[Region]:
    for found in COMMAND.finditer(document.text):
        if not PLACEHOLDER.search(found["words"]):
            yield Region(found.start(), found.end(), found["words"], run_command)


def run_command(example: Example) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fxprune", *shlex.split(example.parsed, comments=True)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code in (0, None), f"{example.path}:{example.line}: {example.parsed}"


def pages() -> list[str]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    return [str(p.relative_to(ROOT)) for p in found if p.exists() and list(parse(p))]


@pytest.mark.parametrize("page", pages())
def test_the_examples_of_a_page_run(page: str, stand_ins: dict[str, Any]) -> None:
    document = parse(ROOT / page)
    document.namespace.update(stand_ins)
    for example in document:
        try:
            example.evaluate()
        except SkipTest:
            continue


def test_little_is_left_out() -> None:
    left = [s for page in pages() for s in SKIP.findall((ROOT / page).read_text(encoding="utf-8"))]
    assert len(left) <= MOST_LEFT_OUT, "\n".join(left)
    assert all('"' in reason for reason in left)
