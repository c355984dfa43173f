"""Remarks of passes: documented, chosen, grouped, written."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from fxprune.pipeline.registry import installed
from fxprune.pipeline.remarks import count_remarks, grouped, read_remarks, select, write_remarks
from fxprune.remark import Remark

DOCS = Path(__file__).parents[2] / "docs" / "remarks.md"
WORD = re.compile(r'code="([a-z-]+)"|\.remark\(\s*"[a-z]+",\s*"([a-z-]+)"')
LISTED = re.compile(r"^\| `([a-z*-]+)\.([a-z-]+)`", re.MULTILINE)
REMARKS = [
    Remark("applied", "a.done", "node 1", "x"),
    Remark("missed", "b-pass.left", "node 2", "y", "z"),
    *(Remark("applied", "a.done", f"node {i}", "x") for i in range(3, 7)),
]


def source(package: str) -> str:
    """The text of the modules of a package."""
    spec = find_spec(package)
    assert spec is not None
    folders = map(Path, spec.submodule_search_locations or [])
    files = (path for folder in folders for path in sorted(folder.rglob("*.py")))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@pytest.mark.skipif(not DOCS.exists(), reason="the tests run outside a checkout")
@pytest.mark.parametrize("package", ["fxprune.pipeline", "fxprune_passes"])
def test_every_word_is_documented(package: str) -> None:
    listed = {word for _, word in LISTED.findall(DOCS.read_text(encoding="utf-8"))}
    assert {a or b for a, b in WORD.findall(source(package))} - listed == set()


@pytest.mark.skipif(not DOCS.exists(), reason="the tests run outside a checkout")
def test_what_is_documented_is_there() -> None:
    known = {p.name for p in installed()} | {"*", "pipeline", "repeat"}
    families = {"capture", "choose", "fits-class", "partial", "solve", "train-smaller", "verify"}
    families |= {"latency", "layers", "recalibrate", "score", "sensitivity", "shards", "wished"}
    families |= {"write-back"}
    listed = set(LISTED.findall(DOCS.read_text(encoding="utf-8")))
    owners = {(owner, word) for owner, word in listed if owner not in families}
    assert {owner for owner, _ in owners} <= known
    text = source("fxprune.pipeline") + source("fxprune_passes")
    assert [word for _, word in sorted(owners) if f'"{word}"' not in text] == []


def test_remarks_are_chosen_by_pass_and_kind() -> None:
    assert select(REMARKS, "b-*") == select(REMARKS, kind="missed") == [REMARKS[1]]


def test_remarks_are_counted_by_pass() -> None:
    assert count_remarks(REMARKS).splitlines()[2].split() == ["a", "5"]
    assert count_remarks([]) == "no remarks"


def test_remarks_of_one_code_stand_together() -> None:
    lines = grouped(REMARKS, shown=2).splitlines()
    assert [x for x in lines if "node" in x] == [
        "applied  a.done  node 1",
        "applied  a.done  node 3",
        "missed   b-pass.left  node 2",
    ]
    assert "  and 3 more of applied a.done" in lines


def test_remarks_are_lines_of_json(tmp_path: Path) -> None:
    write_remarks(REMARKS, tmp_path / "remarks.jsonl")
    assert len((tmp_path / "remarks.jsonl").read_text().splitlines()) == len(REMARKS)
    assert read_remarks(tmp_path / "remarks.jsonl") == REMARKS
