"""Plans as JSON: there and back, readable, and rejected when edited wrongly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import PlanError
from fxprune.graph.program import Program
from fxprune.plan.json import parse_ranges, show_ranges


class Net(nn.Module):
    """Tied weights, and a reshape that spells a size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 6)
        self.c = nn.Linear(6, 6)
        self.c.weight = self.b.weight
        self.d = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(self.b(self.a(x))).reshape(-1, 12)
        out: torch.Tensor = self.d(y)
        return out


@pytest.fixture(scope="module")
def program() -> Program:
    return fp.capture(Net().eval(), (torch.randn(2, 2, 4),))


@pytest.fixture(scope="module")
def plan(program: Program) -> fp.Plan:
    return fp.plan(program, {"a.weight": (0, [1, 2, 5])})


@pytest.fixture
def file(plan: fp.Plan, tmp_path: Path) -> Path:
    plan.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_loaded_plan_equals_the_saved_one(plan: fp.Plan, file: Path) -> None:
    assert fp.Plan.load(file) == plan
    assert fp.Plan.load(file).edits == plan.edits


def test_an_interrupted_save_leaves_the_plan_before(
    plan: fp.Plan, file: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    def interrupt(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fp.plan(program, {"a.weight": (0, [0])}).save(file)
    assert fp.Plan.load(file) == plan
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_loaded_plan_shrinks_alike(program: Program, plan: fp.Plan, file: Path) -> None:
    x = torch.randn(3, 2, 4)
    assert torch.equal(fp.shrink(program, fp.Plan.load(file))(x), fp.shrink(program, plan)(x))


def test_saving_again_gives_the_same_text(file: Path, tmp_path: Path) -> None:
    fp.Plan.load(file).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == file.read_text()


def test_file_holds_ranges_and_no_unit_numbers(file: Path) -> None:
    data = json.loads(file.read_text())
    assert data["tensors"]["a.weight"] == {"0": {"size": 6, "removed": "1-2,5"}}
    assert "removed" not in data


def test_tied_tensors_are_listed_once(file: Path) -> None:
    tensors = json.loads(file.read_text())["tensors"]
    assert tensors["b.weight"]["also"] == ["c.weight"]
    assert "c.weight" not in tensors


def test_one_axis_takes_one_line(file: Path) -> None:
    assert '      "0": {"size": 6, "removed": "1-2,5"}\n' in file.read_text()


def test_a_consistent_edit_by_hand_is_allowed(program: Program, file: Path) -> None:
    text = file.read_text().replace('"1-2,5"', '"0,3-4"')
    file.write_text(text.replace('"1-2,5,7-8,11"', '"0,3-4,6,9-10"'))
    small = fp.shrink(program, fp.Plan.load(file))
    expected = program.tensors()["a.bias"][[1, 2, 5]]
    assert torch.equal(small.tensors()["a.bias"], expected)


def test_an_inconsistent_edit_is_rejected(program: Program, file: Path) -> None:
    file.write_text(file.read_text().replace('"1-2,5"', '"1-3"', 1))
    with pytest.raises(PlanError, match="contradicts itself"):
        fp.shrink(program, fp.Plan.load(file))


def test_a_plan_for_another_model_is_rejected(file: Path) -> None:
    other = fp.capture(nn.Linear(4, 6), (torch.randn(2, 4),))
    with pytest.raises(PlanError, match="another program"):
        fp.shrink(other, fp.Plan.load(file))


def axis(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["tensors"]["a.weight"]["0"]
    return found


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unsorted": (lambda d: axis(d).update(removed="5,1"), "a.weight, axis 0, removed"),
    "repeated": (lambda d: axis(d).update(removed="1-2,2"), "each once"),
    "too large": (lambda d: axis(d).update(removed="6"), "position 6 does not exist"),
    "no range": (lambda d: axis(d).update(removed="1;2"), "0-3,7"),
    "wrong type": (lambda d: axis(d).update(size="6"), "write a whole number"),
    "boolean": (lambda d: axis(d).update(size=True), "write a whole number"),
    "unknown key": (lambda d: axis(d).update(kept="1"), "unknown key 'kept'"),
    "missing key": (lambda d: d.pop("edits"), "lacks 'edits'"),
    "version": (lambda d: d.update(version=2), "this version of fxprune reads 1"),
    "format": (lambda d: d.update(format="other"), "format: is 'other'"),
    "edit": (lambda d: d["edits"][0].update(edit="cut"), "edits, entry 0, edit"),
    "axis": (lambda d: d["tensors"]["a.weight"].update(first={}), "not the number of an axis"),
    "no axis": (lambda d: d["tensors"].update(x={}), "names no axis"),
    "listed twice": (lambda d: d["tensors"].update({"c.weight": {"0": axis(d)}}), "listed twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_malformed_plan_names_file_and_key(file: Path, case: str) -> None:
    change, message = WRONG[case]
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(PlanError) as caught:
        fp.Plan.load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "fxprune-plan", "format": 1}'])
def test_text_that_is_no_plan_is_rejected(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(PlanError):
        fp.Plan.load(file)


def test_missing_file_is_a_plan_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read"):
        fp.Plan.load(tmp_path / "none.json")


def test_ranges_go_there_and_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        positions = np.flatnonzero(rng.random(30) < 0.4)
        assert np.array_equal(parse_ranges(show_ranges(positions), 30), positions)
