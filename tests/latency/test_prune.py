"""Plans for a latency, with a timer that counts: what is met, kept, chosen and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.api import solved
from fxprune.errors import BudgetError, OptionError
from fxprune.graph.program import Program
from fxprune.importance import importance_of, score_units
from fxprune.report import Report
from fxprune.testing.latencies import CountedTimer


def chain(*widths: int) -> nn.Module:
    """Convolutions of unequal resolution, so that equal MACs are unequal shares of scores."""
    layers: list[nn.Module] = []
    for a, b in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.MaxPool2d(4), nn.Conv2d(widths[-1], 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1)
    )


@pytest.fixture(scope="module")
def layered() -> Program:
    torch.manual_seed(0)
    return fp.capture(chain(64, 64, 64).eval(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "times.json"


def pruned(program: Any, file: Path, timer: Any, keep: float = 0.5, **options: Any) -> fp.Outcome:
    table = fp.LatencyTable(file, timer=timer)
    given = {"importance": "magnitude", "verify": False, **options}
    return fp.prune(program, keep=keep, metric="latency", latencies=table, **given)


def kept_score(outcome: fp.Outcome) -> float:
    axes, found = solved(outcome.original), fp.groups(outcome.original)
    scores = score_units(outcome.original, axes, found, importance_of("magnitude", None))
    left = [np.setdiff1d(g.units, outcome.plan.removed) for g in found]
    return sum(float(scores[units].sum()) for units in left)


@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("keep", [0.4, 0.7])
def test_the_wish_is_met_though_operators_do_not_tell_all(
    layered: Program, file: Path, keep: float, scope: str
) -> None:
    timer = CountedTimer(overhead=0.3)  # of which the operators know nothing
    outcome = pruned(layered, file, timer, keep, scope=scope)
    found = outcome.report.latency
    assert found is not None
    assert found.ratio == pytest.approx(keep, rel=0.05)
    assert 1 < timer.asked[2] <= 5  # the first prediction missed, and was corrected
    again = timer.compare(outcome.original, outcome.program).ratio
    assert found.ratio == pytest.approx(again, rel=1e-4)
    assert found.wished == keep
    assert found.predicted == pytest.approx(found.ratio, rel=0.05)
    assert f"wished {keep}" in str(outcome.report)
    assert Report.from_json(outcome.report.to_json()).latency == found


def test_the_same_file_gives_the_same_plan_and_nothing_is_measured_again(
    layered: Program, file: Path
) -> None:
    first, later = CountedTimer(overhead=0.1), CountedTimer()
    a, b = (pruned(layered, file, timer).plan for timer in (first, later))
    assert a == b
    assert min(first.asked) > 0
    assert later.asked == [0, 0, 0]


def test_a_prediction_is_what_the_smaller_network_takes(layered: Program, file: Path) -> None:
    found = pruned(layered, file, CountedTimer()).report.latency
    assert found is not None
    assert found.predicted == pytest.approx(found.ratio, rel=0.01)


def test_widths_that_are_no_faster_are_passed_over(layered: Program, file: Path) -> None:
    outcome = pruned(layered, file, CountedTimer(block=16), 0.6)
    assert {g.kept % 16 for g in outcome.report.groups} == {0}
    assert any(g.kept < g.units for g in outcome.report.groups)


def test_more_of_the_scores_is_kept_than_by_macs_at_the_same_latency(
    layered: Program, file: Path
) -> None:
    timer = CountedTimer(block=16)
    outcome = pruned(layered, file, timer, 0.5)
    assert outcome.report.latency is not None
    others = (
        fp.prune(layered, keep=k, metric="macs", importance="magnitude", verify=False)
        for k in np.linspace(0.3, 0.7, 9)
    )
    no_slower = [o for o in others if timer.compare(layered, o.program).ratio <= 0.51]
    assert no_slower
    assert kept_score(outcome) > max(map(kept_score, no_slower))


def test_a_damaged_file_is_measured_anew(layered: Program, file: Path) -> None:
    plan = pruned(layered, file, CountedTimer()).plan
    whole = file.read_text()
    for text in (whole[:-40], '{"format": 1}', whole.replace(": [", ": [-", 1), "\x00"):
        file.write_text(text)
        outcome = pruned(layered, file, CountedTimer())
        assert outcome.plan == plan
        assert [r.where for r in outcome.remarks if r.code == "latency.cache-damaged"] == [
            str(file)
        ]
        assert json.loads(file.read_text()) == json.loads(whole)


def test_the_environment_names_the_file(
    layered: Program, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXPRUNE_LATENCY_CACHE", str(file))
    table = fp.LatencyTable(timer=CountedTimer())
    fp.prune(layered, keep=0.5, metric="latency", latencies=table, verify=False)
    assert json.loads(file.read_text())["format"] == "fxprune-latencies"


def test_a_file_that_cannot_be_written_is_a_remark(layered: Program, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    outcome = pruned(layered, tmp_path / "taken" / "times.json", CountedTimer())
    assert "latency.not-kept" in {r.code for r in outcome.remarks}
    with pytest.raises(OptionError, match="is a folder"):
        fp.LatencyTable(tmp_path)


def test_a_wish_out_of_reach_is_an_error_or_a_remark(layered: Program, file: Path) -> None:
    with pytest.raises(BudgetError, match=r"a share of 0\.\d+ is the least"):
        pruned(layered, file, CountedTimer(), 0.001)
    outcome = pruned(layered, file.with_name("other.json"), CountedTimer(overhead=3.0), 0.5)
    assert "latency.missed" in {r.code for r in outcome.remarks}


def test_an_operator_that_cannot_be_timed_alone_shrinks_with_its_widths(
    layered: Program, file: Path
) -> None:
    class Narrow(CountedTimer):
        def operator(self, call: Any) -> float:
            if call.args[1].shape[0] < 32 if "conv" in str(call.target) else False:
                raise RuntimeError("not alone")
            return super().operator(call)

    outcome = pruned(layered, file, Narrow())
    assert [r.where for r in outcome.remarks if r.code == "latency.not-timed"] == [
        "aten.conv2d.default"
    ]
    assert outcome.report.latency is not None
    assert outcome.report.latency.ratio == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("how", ["meta", "fake"])
def test_a_network_without_data_is_refused(file: Path, how: str) -> None:
    from torch._subclasses import FakeTensorMode

    with torch.device("meta") if how == "meta" else FakeTensorMode():
        program = fp.capture(chain(16, 16).eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(OptionError, match="without data cannot be measured"):
        pruned(program, file, CountedTimer(), importance="random")


def test_limits_hold(layered: Program, file: Path) -> None:
    outcome = pruned(layered, file, CountedTimer(), 0.6, ignore=("2",), multiple_of=8)
    kept = {g.name: g.kept for g in outcome.report.groups}
    assert kept["2.weight:0"] == 64
    assert all(n % 8 == 0 for n in kept.values())


def test_the_mode_is_as_it_was(file: Path) -> None:
    program = fp.capture(chain(16, 16).train(), torch.randn(2, 3, 8, 8))
    pruned(program, file, CountedTimer(), 0.7)
    assert program.training


def test_rounds_with_a_recovery_and_shares_of_a_sensitivity(file: Path) -> None:
    torch.manual_seed(0)
    model, timer = chain(16, 16).eval(), CountedTimer()
    data = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    table = fp.LatencyTable(file, timer=timer)
    found = fp.prune_iteratively(
        model,
        data,
        0.5,
        2,
        steps=2,
        metric="latency",
        importance="magnitude",
        latencies=table,
        progress=False,
    )
    assert found.rounds[-1].kept == pytest.approx(0.5, rel=0.05)
    measured = fp.sensitivity(
        model, fp.Calibration(data, loss=lambda y, _: y.square().mean()), blocks=False
    )
    outcome = fp.prune(
        model, data[0], keep=measured.keep(0.6, "latency", latencies=table), verify=False
    )
    assert timer.compare(outcome.original, outcome.program).ratio == pytest.approx(0.6, abs=0.06)
