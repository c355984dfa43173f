"""Curves of a report: their data, and the pictures that are drawn of them."""

import json
import math
from pathlib import Path

import pytest
import torch

import fxprune as fp
from fxprune.errors import LoadError, OptionError
from fxprune.files.document import Document, Entry
from fxprune.report import Curves
from fxprune.report.curves import read_curves
from fxprune.report.html.curves import curves, thinned, ticks
from fxprune.testing.training import ConvNet, make_batches, make_model

GIVEN = Curves("Recovery", "epoch", "accuracy", {"a": [(0, 0.5), (1, 0.75)], "b": [(0, 0.25)]})


def test_json_restores_them() -> None:
    text = json.dumps(GIVEN.to_json())
    assert read_curves(Document("x", LoadError).parse(text)) == GIVEN


@pytest.mark.parametrize(
    "series", [{}, {"a": []}, {"a": [(0, math.nan)]}, {"a": [(math.inf, 0)]}, {"a": [(0, 1e308)]}]
)
def test_what_cannot_be_drawn_is_refused(series: dict[str, list[tuple[float, float]]]) -> None:
    with pytest.raises(OptionError, match="cannot be drawn"):
        Curves("a", "x", "y", series)


def test_data_without_a_point_is_refused() -> None:
    data = {**GIVEN.to_json(), "series": {"a": []}}
    with pytest.raises(LoadError, match="has no point"):
        read_curves(Entry(data, Document("x", LoadError)))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (-3, 7e6), (1e-9, 2e-9), (5, 5), (0, 0), (-1e300, 1e300), (1, 1 + 1e-15)],
)
def test_ticks_span_the_range_and_are_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert found == sorted(set(found))
    assert 2 <= len(found) <= 8


def test_points_lie_where_their_values_say() -> None:
    drawn = curves([GIVEN]).body
    # y from 0.2 to 0.8 over 12 to 272 from below, x from 0 to 1 over 76 to 624
    assert 'd="M76.0 142.0L624.0 33.67" class="line"' in drawn
    assert "<title>a: 1, 0.75</title>" in drawn


def test_a_long_series_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    found = thinned(points)
    assert len(found) <= 401
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert "some points are left out" in curves([Curves("a", "x", "y", {"a": points})]).body
    assert thinned(points[:7]) == points[:7]


def test_a_report_draws_what_was_measured_and_is_saved_with_it(tmp_path: Path) -> None:
    data = make_batches(ConvNet, 2)
    outcome = fp.prune(make_model(ConvNet).eval(), data[0][0], keep=0.7, data=data)
    sensitivity = fp.sensitivity(outcome.original, data, shares=(0.5,), progress=False)
    recovered = fp.recover(
        outcome.program, outcome.original, data, 4, validation=data, progress=False
    )
    report = outcome.report.with_curves(GIVEN, sensitivity, recovered)
    groups, blocks, recovery = report.curves[1:]
    for group in sensitivity.groups:
        points = zip(group.removed, group.rise, strict=True)
        wanted = [(0, 0), *((n / group.units, rise) for n, rise in points)]
        assert list(groups.series[group.name]) == wanted
    rises = [(i + 1, b.rise) for i, b in enumerate(sensitivity.blocks)]
    assert list(blocks.series["without the block"]) == rises
    steps = [(p.step, p.loss) for p in recovered.history[1:]]
    assert list(recovery.series["loss of the steps"]) == steps
    fp.save(recovered.network, tmp_path / "better", report=report)
    again = fp.load_report(tmp_path / "better")
    assert again.curves == report.curves
    assert again.plan is not None
    assert again.plan.digest == outcome.plan.digest
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(fp.load(tmp_path / "better")(x), recovered.network(x))
    assert "Sensitivity of residual blocks" in again.to_html()


def test_rounds_are_drawn() -> None:
    data = make_batches(ConvNet, 2)
    found = fp.prune_iteratively(
        make_model(ConvNet), data, 0.6, 2, steps=4, validation=data, progress=False
    )
    _, rounds = found.curves()
    wanted = [(r.kept, r.after) for r in found.rounds]
    assert list(rounds.series["after the steps"]) == wanted


def test_a_report_is_saved_with_its_plan_or_not_at_all(tmp_path: Path) -> None:
    outcome = fp.prune(make_model(ConvNet).eval(), make_batches(ConvNet, 1)[0][0], keep=0.7)
    bare = type(outcome.report).from_json(outcome.report.to_json())
    with pytest.raises(OptionError, match="does not know its plan"):
        fp.save(outcome.program, tmp_path / "x", report=bare)
    with pytest.raises(OptionError, match="a report of its own"):
        fp.save(outcome, tmp_path / "x", report=bare)
    assert not (tmp_path / "x").exists()
    fp.save(outcome.program, tmp_path / "x", report=bare, plan=outcome.plan)
    assert fp.load_report(tmp_path / "x").curves == ()
