"""Rows of epochs: means, sizes, files, pictures."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.testing.training import ConvNet, Mlp, capture, make_model
from fxprune.training.history import size_of, spell


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(make_model(Mlp))


class Clock:
    """Gives 1, 2, 4, 8, ... seconds."""

    def __init__(self) -> None:
        self.now = 0.5

    def __call__(self) -> float:
        self.now *= 2
        return self.now


def filled(program: Program, path: Path | None = None) -> fp.training.History:
    history = fp.training.History(path, clock=Clock())
    history.step(2.0, correct=1, samples=4)
    history.step(torch.tensor(1.0), correct=torch.tensor(2), samples=2)
    history.step(3.0, samples=2)
    history.end_epoch(program, kept=0.5)
    history.end_epoch(program)
    return history


def test_rows(program: Program) -> None:
    row, empty = filled(program).rows
    assert (row.epoch, empty.epoch) == (0, 1)
    assert row.loss == (8 + 2 + 6) / 8
    assert row.accuracy == 3 / 6
    assert (row.steps, row.seconds_per_step) == (3, 2)
    assert (empty.loss, empty.accuracy, empty.steps, empty.seconds_per_step) == (
        None,
        None,
        0,
        None,
    )
    assert row.parameters == sum(p.numel() for p in program.module.parameters())
    assert row.macs == 4 * (5 * 8 + 8 * 6 + 6 * 3)
    assert (row.layers, row.units) == (3, 14)
    assert row.extra == {"kept": 0.5}


def test_a_name_that_a_column_has_is_refused(program: Program) -> None:
    history = fp.training.History()
    with pytest.raises(fp.FxpruneError, match="these columns exist already: units"):
        history.end_epoch(program, units=3.0)
    assert not history.rows


def test_sizes_fall_with_the_network() -> None:
    program = capture(make_model(ConvNet), "insert-gates").eval()
    before = size_of(program)
    smaller = fp.run(
        program, None, "set-gates{where=blocks.0} | delete-gated", verify=False
    ).program
    after = size_of(smaller)
    assert before.layers - after.layers == 2
    assert after.units < before.units
    assert after.parameters < before.parameters


def test_table(program: Program) -> None:
    assert str(fp.training.History()) == "no epoch yet"
    lines = str(filled(program)).splitlines()
    assert lines[0].split() == [
        *("epoch", "loss", "accuracy", "parameters", "MACs", "layers", "units", "s/step", "kept")
    ]
    assert lines[2].split()[:3] == ["0", "2.0000", "50.00%"]
    assert lines[2].split()[-1] == "0.5"
    assert lines[3].split()[:3] == ["1", "-", "-"]
    assert lines[3].split()[-1] == "-"


@pytest.mark.parametrize(
    ("value", "text"), [(18460.0, "18,460"), (1, "1"), (0.123456, "0.1235"), (float("nan"), "nan")]
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert spell(value) == text


def test_file_goes_on(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "history.jsonl"
    first = filled(program, path)
    again = fp.training.History(path)
    assert again.rows == first.rows
    assert again.end_epoch(program).epoch == 2
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3
    path.write_text("{}\n")
    with pytest.raises(fp.FxpruneError, match="does not contain a training history"):
        fp.training.History(path)


def test_an_interrupted_file_goes_on(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    rows = filled(program, path).rows
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end] + b"\0" * (end % 3))
        with pytest.warns(UserWarning, match=r"history\.jsonl, line 2: the end of the line"):
            assert fp.training.History(path).rows == rows[:1]
        assert path.stat().st_size >= end
    path.write_bytes(whole[:-30])
    with pytest.warns(UserWarning, match="line 2"):
        again = fp.training.History(path)
    again.end_epoch(program)
    again.end_epoch(program)
    assert path.read_bytes().startswith(whole[:start])
    read = fp.training.History(path)
    assert read.rows == again.rows
    assert [row.epoch for row in read.rows] == [0, 1, 2]


def test_a_last_line_without_its_end_counts(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    rows = filled(program, path).rows
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    again = fp.training.History(path)
    assert again.rows == rows
    again.end_epoch(program)
    assert fp.training.History(path).rows == again.rows


@pytest.mark.parametrize("broken", ['{"epoch": 0, "lo\n{}\n', "[1, 2", '{"name": 1', "notes"])
def test_what_no_crash_leaves_is_refused(program: Program, tmp_path: Path, broken: str) -> None:
    path = tmp_path / "history.jsonl"
    filled(program, path)
    path.write_text(path.read_text() + broken)
    before = path.read_text()
    with pytest.raises(fp.FxpruneError, match="does not contain a training history") as error:
        fp.training.History(path)
    assert error.value.where.endswith("line 3")
    assert error.value.do.startswith("remove line 3")
    assert path.read_text() == before


def test_plot(program: Program, tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    filled(program).plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard(program: Program, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    history = fp.training.History(tensorboard=tmp_path)
    for loss in (1.0, 0.5):
        history.step(loss, correct=1, samples=2)
        row = history.end_epoch(program, kept=0.25)
    events = reading.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("fxprune/loss")] == [(0, 1.0), (1, 0.5)]
    for tag in ("accuracy", "parameters", "macs", "layers", "units", "seconds_per_step"):
        value = events.Scalars(f"fxprune/{tag}")[-1].value
        assert value == pytest.approx(getattr(row, tag)), tag
    assert events.Scalars("fxprune/kept")[-1].value == 0.25


def test_what_is_missing_is_said(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(fp.FxpruneError, match="matplotlib is not installed"):
        filled(program).plot(tmp_path / "curves.png")
    with pytest.raises(fp.FxpruneError, match="TensorBoard is not installed"):
        fp.training.History(tensorboard=tmp_path)
    with pytest.raises(fp.FxpruneError, match="nothing to plot"):
        fp.training.History().plot(tmp_path / "curves.png")
