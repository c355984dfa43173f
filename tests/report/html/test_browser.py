"""The page in a real browser, which runs its script."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fxprune as fp
from fxprune.report import Curves, Latency, Outcome

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium is installed"),
]


@pytest.fixture
def written(outcome: Outcome, tmp_path: Path) -> Path:
    remarks = [
        fp.Remark("missed", "a.b", "here", "it stays"),
        fp.Remark("missed", "c.d", "here", "it stays too"),
        fp.Remark("analysis", "a.b", "there", "good to know"),
    ]
    curves = (Curves("Sensitivity", "share", "loss", {"a": [(0, 1), (1, 2)]}),)
    report = replace(
        outcome.report, remarks=remarks, latency=Latency(2.0, 1.0, 0.5, 9, 1), curves=curves
    )
    path = tmp_path / "page.html"
    path.write_text(report.to_html(), encoding="utf-8")
    return path


def test_the_script_runs_and_nothing_is_refused(written: Path) -> None:
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    words += ["--enable-logging=stderr", "--dump-dom", written.as_uri()]
    done = subprocess.run(
        [str(BROWSER), *words], capture_output=True, text=True, timeout=120, check=True
    )
    assert "3 of 3 shown" in done.stdout  # the filters were counted
    assert "CONSOLE" not in done.stderr  # neither an error nor a refusal by the policy


@pytest.fixture
def seen(written: Path) -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(written.as_uri())
        yield page
        assert asked == [written.as_uri()]
        browser.close()


def test_filters_choose_remarks(seen: Any) -> None:
    def shown() -> int:
        return int(seen.locator("#remarks-list .item:visible").count())

    assert shown() == 3
    seen.get_by_label("missed").uncheck()
    assert shown() == 1
    seen.get_by_label("missed").check()
    seen.get_by_label("code").select_option("a.b")
    assert shown() == 2
    seen.get_by_label("find a text").fill("STAYS")
    assert shown() == 1
    assert seen.locator("#remarks output").inner_text() == "1 of 3 shown"


def test_everything_is_reached_by_keyboard(seen: Any) -> None:
    seen.keyboard.press("Tab")
    assert seen.evaluate("document.activeElement.className") == "skip"
    seen.keyboard.press("Enter")
    assert seen.evaluate("document.activeElement.id") == "report"
    group = seen.locator("#groups-list details").first
    group.locator("summary").focus()
    assert seen.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    seen.keyboard.press("Enter")
    assert group.evaluate("one => one.open")


def test_the_tree_opens_and_closes_and_colours_change(seen: Any) -> None:
    seen.get_by_role("button", name="Open all").click()
    assert seen.locator("#tree details:not([open])").count() == 0
    seen.get_by_role("button", name="Close all").click()
    assert seen.locator("#tree details[open]").count() == 1
    colour = "getComputedStyle(document.body).backgroundColor"
    light = seen.evaluate(colour)
    seen.get_by_role("button", name="Dark or light").click()
    dark = seen.evaluate(colour)
    assert light != dark
    seen.get_by_role("button", name="Dark or light").click()
    assert seen.evaluate(colour) == light


# For each text that is shown, its contrast with the ground behind it, as WCAG 2 counts it.
CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  for (const one of document.querySelectorAll("main *, header *")) {
    if (![...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    let ground = one;
    while (ground.parentElement && rgb(getComputedStyle(ground).backgroundColor)[3] === 0)
      ground = ground.parentElement;
    const style = getComputedStyle(one);
    const ink = one.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [a, b] = [ink, getComputedStyle(ground).backgroundColor].map(rgb).map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = `${one.tagName}.${one.className.baseVal ?? one.className}`;
    found[name] = Math.min(found[name] ?? 99, ratio);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(seen: Any, scheme: str) -> None:
    seen.emulate_media(color_scheme=scheme)
    found = seen.evaluate(CONTRASTS)
    assert len(found) > 15
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("width", [320, 800, 1400])
def test_no_width_needs_scrolling_to_the_side(seen: Any, width: int) -> None:
    seen.set_viewport_size({"width": width, "height": 700})
    seen.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
