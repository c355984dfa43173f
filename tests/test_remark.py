"""Remarks: their text, and a documented code for each."""

import re
from pathlib import Path

import pytest

import fxprune
import fxprune_passes
from fxprune.remark import Remark

DOCS = Path(__file__).parent.parent / "docs" / "remarks.md"
CODE = re.compile(r'"((?:capture|choose|solve|partial|shrink|train-smaller|verify)\.[a-z-]+)"')
LISTED = re.compile(
    r"^\| `((?:capture|choose|solve|partial|train-smaller|verify)\.[a-z-]+)`", re.MULTILINE
)


@pytest.mark.skipif(not DOCS.exists(), reason="the tests run outside a checkout")
def test_every_code_is_documented() -> None:
    sources = [
        path
        for package in (fxprune, fxprune_passes)
        for path in Path(str(package.__file__)).parent.rglob("*.py")
    ]
    codes = {c for path in sources for c in CODE.findall(path.read_text(encoding="utf-8"))}
    listed = set(LISTED.findall(DOCS.read_text(encoding="utf-8")))
    assert codes == listed


def test_text_leaves_out_what_is_empty() -> None:
    text = str(Remark("missed", "solve.unknown-op", "node roi", "froze 3 units", do="add a rule"))
    assert text.splitlines() == [
        "missed   solve.unknown-op  node roi",
        "  froze 3 units",
        "  do: add a rule",
    ]
