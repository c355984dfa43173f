"""The page of a report: all that the report has is in it, it is well formed, and nothing in it is run or fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import fxprune as fp
from fxprune.plan.json import show_ranges
from fxprune.plan.plan import Rescale, ScaleArgument, SetArgument
from fxprune.report import Curves, GroupRow, Latency, Outcome, Report, Row, Summary
from fxprune.verify import Check

EVIL = "</script><script>alert(1)</script><img src=http://x.y onerror=alert(1)>\"'&"
EMPTY = {"br", "input", "meta"}
SECTIONS = {"totals", "modules", "groups", "plan", "remarks", "checks", "seconds"}


class Page(HTMLParser):
    """What is in a page.

    Attributes:
        tags: every element: its name and attributes, in order.
        texts: name of the element -> the texts in it.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    @property
    def text(self) -> str:
        """All that a reader may see."""
        return "\n".join(
            t
            for name, texts in self.texts.items()
            if name not in ("script", "style")
            for t in texts
        )

    def values(self, attribute: str) -> list[str]:
        """The values of an attribute, wherever it stands."""
        return [a[attribute] or "" for _, a in self.tags if attribute in a]


def sections(page: Page) -> set[str]:
    return {str(a["id"]) for name, a in page.tags if name == "section"}


@pytest.fixture(scope="module")
def page(outcome: Outcome) -> Page:
    return Page(outcome.report.to_html())


def test_every_module_with_its_sizes_is_in_it(outcome: Outcome, page: Page) -> None:
    names = {r.path.rpartition(".")[2] for r in outcome.report.before.rows} - {""}
    assert names <= set(page.texts["code"])
    total = outcome.report.after.total
    for number in (total.parameters, total.macs):
        assert f"{number:,}" in page.text
    (stem,) = (r for r in outcome.report.after.rows if r.path == "stem")
    assert "2x8x6x6 → " + "x".join(map(str, stem.output)) in page.text


def test_every_group_says_what_is_tied_to_it_and_why(outcome: Outcome, page: Page) -> None:
    for group in fp.groups(outcome.original):
        assert group.name in page.texts["code"]
        for member in group.members:
            assert member.param in page.texts["code"]
    why = fp.explain(outcome.original, "blocks.0.one.weight", 0)
    for reason in why.members:
        assert set(reason.path) <= set(page.texts["code"])
    assert (
        fp.explain(outcome.original, "head.weight", 0).frozen.splitlines()[-1].strip() in page.text
    )


def test_every_axis_of_the_plan_is_in_it_with_what_goes(outcome: Outcome, page: Page) -> None:
    for name, cut in outcome.plan.kept.items():
        for axis, kept in cut.items():
            assert f"{name}:{axis}" in page.texts["code"]
            size = outcome.plan.lengths[name][axis]
            assert f"{size} → {len(kept)}, " in page.text
            gone = np.setdiff1d(np.arange(size), kept)
            assert any(show_ranges(gone) == t for t in page.texts["p"])


def test_remarks_of_one_text_are_one_item_with_every_place(outcome: Outcome) -> None:
    wheres = [f"node {i}" for i in range(40)]
    found = [fp.Remark("missed", "a.b", w, "it stays", "because", "do it") for w in wheres]
    found.append(fp.Remark("applied", "c.d", "x", "it went"))
    page = Page(replace(outcome.report, remarks=found).to_html())
    assert set(wheres) <= set(page.texts["code"])
    assert page.text.count("because") == 1
    assert [a["data-code"] for _, a in page.tags if "data-code" in a] == ["a.b", "c.d"]
    assert {"missed", "applied"} <= set(page.values("value"))


def test_checks_and_seconds_are_in_it(outcome: Outcome, page: Page) -> None:
    for check in outcome.report.checks:
        assert str(check).removeprefix("agrees") in page.text
    assert set(outcome.report.seconds) <= set(page.texts["dt"])


def test_a_section_is_there_only_with_its_data(outcome: Outcome, page: Page) -> None:
    assert sections(page) == SECTIONS
    measured = replace(
        outcome.report,
        latency=Latency(2.0, 1.0, 0.5, 15, 1),
        curves=[Curves("Sensitivity", "share", "loss", {"a": [(0, 1), (1, 2)]})],
    )
    assert sections(Page(measured.to_html())) == SECTIONS | {"latency", "curves"}
    silent = replace(outcome.report, remarks=())
    assert sections(Page(silent.to_html())) == SECTIONS - {"remarks"}


def test_a_report_without_a_network_says_so(outcome: Outcome) -> None:
    read = Report.from_json(outcome.report.to_json())
    page = Page(read.to_html())
    assert "without the graph of the network" in page.text
    assert sections(page) == SECTIONS - {"plan"}


def test_a_group_that_the_graph_has_not_is_told(outcome: Outcome) -> None:
    gone = GroupRow("gone.weight:0", 2, 1, True)
    text = Page(replace(outcome.report, groups=[*outcome.report.groups, gone]).to_html()).text
    assert text.count("has no such group any more") == 1


def test_the_smaller_network_shows_the_same_ties(outcome: Outcome) -> None:
    read = replace(Report.from_json(outcome.report.to_json()), plan=outcome.plan)
    assert read.to_html(outcome.program) == outcome.report.to_html()


def test_ids_occur_once_and_links_lead_to_them(page: Page) -> None:
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    for to in (*(x.removeprefix("#") for x in page.values("href")), *page.values("data-for")):
        assert to in ids
    assert set(page.values("aria-labelledby")) <= set(ids)


def test_nothing_is_fetched(page: Page) -> None:
    assert not {"img", "link", "iframe", "object", "base", "form-action"} & {
        t for t, _ in page.tags
    }
    assert not page.values("src")
    assert all(x.startswith("#") for x in page.values("href"))
    (style,), (script,) = page.texts["style"], page.texts["script"]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert not re.search(r"fetch|XMLHttp|import\(|eval|innerHTML", script)


def test_only_the_script_of_the_page_may_run(page: Page) -> None:
    (script,) = page.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def hostile() -> Report:
    rows = (Row("", EVIL, (1,), 5, 5, 5), Row(f"{EVIL}.{EVIL}", EVIL, (2,), 5, 5, 5))
    sizes = Summary(EVIL, ((1,),), rows)
    bad = Check(False, 1.0, EVIL, 0.1, EVIL, EVIL, (EVIL,), (2,), EVIL, None, "")
    kept = {EVIL: {0: np.array([0])}}
    edits = (
        SetArgument(EVIL, EVIL, None, EVIL, EVIL),
        ScaleArgument(EVIL, EVIL, 0, 1, 2),
        Rescale(EVIL, 1, 2),
    )
    plan = fp.Plan(kept, edits, "", np.array([1]), {EVIL: {0: 2}})
    remark = fp.Remark("missed", EVIL, EVIL, EVIL, EVIL, EVIL)
    return Report(
        sizes,
        sizes,
        (GroupRow(EVIL, 2, 1, True),),
        (bad,),
        (remark, replace(remark, kind="applied", code="x")),
        {EVIL: 1.0},
        Latency(1.0, 2.0, 2.0, 1, 1),
        (Curves(EVIL, EVIL, EVIL, {EVIL: [(0, 0)]}, EVIL),),
        plan,
    )


def test_a_hostile_name_stays_a_text(outcome: Outcome) -> None:
    page = Page(hostile().to_html())
    assert [t for t, _ in page.tags].count("script") == 1
    assert not {"img"} & {t for t, _ in page.tags}
    assert not page.values("onerror")
    assert page.texts["script"] == Page(outcome.report.to_html()).texts["script"]
    for element in ("h1", "code", "dt", "h3", "option", "title", "text", "td"):
        assert any(EVIL in t for t in page.texts[element]), element


def test_a_hostile_module_is_captured_and_shown_as_text() -> None:
    name = "<script>alert(1)</script>"
    model = torch.nn.Sequential()
    model.add_module(name, torch.nn.Linear(4, 8))
    model.add_module("last", torch.nn.Linear(8, 2))
    found = fp.prune(model.eval(), torch.randn(2, 4))
    page = Page(found.report.to_html())
    assert f"{name}.weight:0" in page.texts["code"]
    assert [t for t, _ in page.tags].count("script") == 1
    for part in (found, found.program, found.plan, found.report, fp.groups(found.program)):
        assert "<script" not in part._repr_html_()


def test_a_deep_module_tree_is_drawn() -> None:
    rows = (Row(".".join("a" * 5000), "A", (), 1, 1, 1),)
    Page(Report(Summary("A", (), rows), Summary("A", (), rows)).to_html())


def test_a_short_html_for_notebooks(outcome: Outcome) -> None:
    groups = fp.groups(outcome.original)
    for part, says in (
        (outcome.program, "Net: "),
        (groups, groups[0].name),
        (outcome.plan, "stem.weight"),
        (outcome.report, "agrees with the silenced original"),
        (outcome, "Net: "),
    ):
        text = part._repr_html_()
        assert says in Page(text).text
        assert len(text) < 10_000


def test_a_language_model_of_32_layers_stays_small() -> None:
    names = [f"layers.{i}.{part}" for i in range(32) for part in ("q", "k", "v", "o", "up", "down")]
    rows = tuple(Row(n, "Linear", (1, 8, 4096), 4096**2, 4096**2, 4 * 4096**2) for n in names)
    rng = np.random.default_rng(0)
    kept = {
        f"{n}.weight": {0: np.sort(rng.permutation(11008)[:5504]), 1: np.arange(0, 4096, 2)}
        for n in names
    }
    lengths = {n: {0: 11008, 1: 4096} for n in kept}
    sizes = Summary("Llama", ((1, 8),), rows)
    groups = tuple(GroupRow(f"{n}.weight:0", 11008, 5504, True) for n in names)
    remarks = [fp.Remark("analysis", "a.b", n, "a long text " * 20) for n in names]
    plan = fp.Plan(kept, (), "", np.zeros(0, np.int64), lengths)
    page = Report(sizes, sizes, groups, (), remarks, plan=plan).to_html()
    Page(page)
    assert len(page.encode()) < 2_000_000
    assert page.count("a long text") == 20
    assert "and more, 5,504 in all" in page
