"""What the documentation repeats of the code is what the code says."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fxprune as fp
from fxprune.pipeline.kinds import option_fields
from fxprune.pipeline.registry import find_pass, installed

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOT_TOLD = {"__main__", "gate"}  # `python -m fxprune`, and an older import path

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the wheel carries no docs")


def layers() -> list[set[str]]:
    """The import layers from the bottom up, as import-linter checks them."""
    contract: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (found,) = (c for c in contract["tool"]["importlinter"]["contracts"] if c["name"] == "layers")
    rows = [set(re.findall(r"\((\w+)\)", row)) - NOT_TOLD for row in reversed(found["layers"])]
    return [row for row in rows if row]


def told(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "README.md":
        (text,) = re.findall(r"^## Architecture\n(.*?)^## ", text, re.M | re.S)
        text = text.partition("consists of")[2].partition(".")[0]
        return re.findall(r"`(\w+)`", text)
    return re.findall(r"^\| `(\w+)` \|", text, re.M)


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_parts_are_told_in_the_order_of_the_import_layers(page: str) -> None:
    names = iter(told(page))
    found = [{next(names, "") for _ in row} for row in layers()]
    assert found == layers()
    assert not list(names)


def test_the_picture_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "scripts" / "draw_architecture.py"))["draw"]()
    assert (DOCS / "architecture.svg").read_text(encoding="utf-8") == drawn


def test_the_reference_has_every_public_name() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    listed = set(re.findall(r"^::: \S+\.(\w+)$", text, re.M))
    assert {*fp.__all__, *fp.training.__all__} - listed == set()


@pytest.mark.parametrize("name", [one.name for one in installed()])
def test_the_page_of_a_pass_has_its_options(name: str) -> None:
    pytest.importorskip("mkdocs")
    write_page = runpy.run_path(str(ROOT / "scripts" / "site_pages.py"))["write_page"]
    (page,) = (write_page(one) for one in installed() if one.name == name)
    options = [f.name.replace("_", "-") for f in option_fields(find_pass(name))]
    assert re.findall(r"^\| `([\w-]+)` +\|", page, re.M) == options


def test_the_version_to_cite_is_this_one() -> None:
    assert f"\nversion: {fp.__version__}\n" in (ROOT / "CITATION.cff").read_text()
