"""Summaries and reports: their numbers, their text, their JSON."""

import json

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.remark import Remark
from fxprune.report import (
    Clock,
    Comparison,
    GroupRow,
    Report,
    Summary,
    compare,
    fold,
    group_rows,
    summary,
)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.shared = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.shared(self.shared(self.norm(self.body(x))))
        return y


@pytest.fixture(scope="module")
def program() -> Program:
    return fp.capture(Twice().eval(), (torch.randn(3, 4),))


@pytest.fixture(scope="module")
def small(program: Program) -> Program:
    return fp.shrink(program, fp.plan(program, {"body.0.weight": (0, [1, 5])}))


def row(of: Summary, path: str) -> tuple[int, int, int]:
    found = next(r for r in of.rows if r.path == path)
    return found.parameters, found.macs, found.bytes


def test_row_of_a_linear_layer(program: Program) -> None:
    assert row(summary(program), "body.0") == (40, 3 * 32, 160)


def test_buffers_count_as_bytes_only(program: Program) -> None:
    assert row(summary(program), "norm") == (16, 0, 4 * 32 + 8)


def test_module_called_twice_has_its_parameters_once(program: Program) -> None:
    assert row(summary(program), "shared") == (72, 2 * 3 * 64, 288)


def test_total_has_every_parameter(program: Program) -> None:
    assert summary(program).total.parameters == sum(p.numel() for p in program.module.parameters())


def test_depth_adds_up_what_is_below(program: Program) -> None:
    assert row(summary(program, depth=1), "body") == (40 + 72, 3 * (32 + 64), 4 * 112)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_folding_keeps_the_total(program: Program, depth: int) -> None:
    whole = summary(program)
    assert fold(whole, depth).total == whole.total


def test_text_names_class_output_and_total(program: Program) -> None:
    text = str(summary(program))
    assert "Twice, for inputs 3x4" in text
    assert "BatchNorm1d" in text
    assert text.splitlines()[-1].split()[:2] == ["total", "200"]


def test_modules_without_cost_are_not_printed(program: Program) -> None:
    assert "ReLU" not in str(summary(program))


def test_comparison_sets_modules_side_by_side(program: Program, small: Program) -> None:
    line = next(x for x in str(compare(program, small)).splitlines() if x.startswith("body.0"))
    assert line.split()[1:9] == ["Linear", "3x8", "->", "3x6", "40", "30", "75", "%"]


def test_ratios_are_what_is_left(program: Program, small: Program) -> None:
    ratios = compare(program, small).ratios
    assert ratios["parameters"] == summary(small).total.parameters / 200


def test_summary_round_trips_through_json(program: Program) -> None:
    whole = summary(program)
    assert Summary.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_comparison_round_trips_through_json(program: Program, small: Program) -> None:
    both = compare(program, small)
    assert Comparison.from_json(json.loads(json.dumps(both.to_json()))) == both


def report(program: Program, small: Program) -> Report:
    plan = fp.plan(program, {"body.0.weight": (0, [1, 5])})
    checks = (fp.verify(program, plan, small),)
    remarks = (Remark("missed", "solve.unknown-op", "node roi", "froze 3 units"),)
    rows = (GroupRow("body.0.weight:0", 8, 6, True),)
    return Report(summary(program), summary(small), rows, checks, remarks, {"capture": 1.5})


def test_report_round_trips_through_json(program: Program, small: Program) -> None:
    whole = report(program, small)
    assert Report.from_json(json.loads(json.dumps(whole.to_json(), allow_nan=False))) == whole


def test_report_says_everything(program: Program, small: Program) -> None:
    text = str(report(program, small))
    for part in ("body.0.weight:0", "exact", "agrees with", "solve.unknown-op", "capture 1.50 s"):
        assert part in text


def test_rows_of_groups_count_what_stays(program: Program) -> None:
    plan = fp.plan(program, {"body.0.weight": (0, [1, 5])})
    rows = {row.name: (row.units, row.kept) for row in group_rows(fp.groups(program), plan)}
    assert rows.pop("body.0.weight:0") == (8, 6)
    assert all(units == kept for units, kept in rows.values())


def test_a_clock_has_a_lap_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.report.clock.perf_counter", iter((1.0, 3.0, 3.5)).__next__)
    clock = Clock()
    clock.lap("capture")
    clock.lap("solve")
    assert clock.laps == {"capture": 2.0, "solve": 0.5}


def test_module_used_through_its_parent_stands_after_it() -> None:
    program = fp.capture(nn.MultiheadAttention(8, 2), (torch.randn(3, 2, 8),) * 3)
    assert [r.path for r in summary(program).rows] == ["", "out_proj"]
