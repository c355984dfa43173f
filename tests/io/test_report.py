"""Reports that somebody else may have written: each one is refused by name, or becomes a page."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.io.report import load_report
from fxprune.plan.json import from_text
from fxprune.plan.plan import KINDS
from fxprune.report import Curves, Latency, Outcome, Report

ODD: tuple[Any, ...] = (
    None,
    -1,
    2**63,
    10**400,
    1e308,
    0,
    "",
    "inf",
    "<b>",
    "a" * 9999,
    [],
    [[]],
    {},
    {"x": 1},
    True,
)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    found = fp.prune(net, torch.randn(2, 4))
    report = replace(
        found.report,
        remarks=(fp.Remark("missed", "a.b", "x", "y"),),
        latency=Latency(2.0, 1.0, 0.5, 9, 1),
        curves=(Curves("a", "x", "y", {"a": [(0, 1)]}),),
    )
    return replace(found, report=report)


def changed(value: Any) -> Iterator[Any]:
    """Copies of plain data in each of which one value is another, or is not there."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        for odd in ODD:
            yield {**value, key: odd} if isinstance(value, dict) else [*value[:key], odd]
        if isinstance(value, dict):
            yield {k: v for k, v in value.items() if k != key}
        if isinstance(value[key], dict | list):
            for inner in changed(value[key]):
                other = copy.copy(value)
                other[key] = inner
                yield other


def read_plan(text: str) -> fp.Plan:
    data = from_text(text, KINDS)
    return fp.Plan(data.kept, data.edits, data.fingerprint, np.zeros(0, np.int64), data.lengths)


def test_the_report_is_read_as_it_was_saved(outcome: Outcome, tmp_path: Path) -> None:
    fp.save(outcome, tmp_path / "x")
    found = load_report(tmp_path / "x")
    assert found.to_json() == outcome.report.to_json()
    assert found.plan == outcome.plan


def pages(made: Iterable[Callable[[], Report]]) -> tuple[int, int]:
    """How many reports are refused by fxprune, and how many become a page; anything else is a fault."""
    refused = shown = 0
    for make in made:
        try:
            make().to_html()
            shown += 1
        except fp.FxpruneError:
            refused += 1
    return refused, shown


def test_any_change_of_a_report_is_refused_or_shown(outcome: Outcome) -> None:
    data = json.loads(json.dumps(outcome.report.to_json()))
    others = islice(changed(data), 0, None, 17)  # some of several thousand
    refused, shown = pages(partial(Report.from_json, other) for other in others)
    assert refused > 20
    assert shown > 20


def test_any_change_of_a_plan_is_refused_or_shown(outcome: Outcome, tmp_path: Path) -> None:
    outcome.plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    texts = (json.dumps(other) for other in islice(changed(data), 0, None, 3))
    made = (lambda t=t: replace(outcome.report, plan=read_plan(t)) for t in texts)
    refused, shown = pages(made)
    assert refused > 20
    assert shown > 2
