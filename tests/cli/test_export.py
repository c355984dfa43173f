"""Exporting from the command line: what is written runs elsewhere, and is compared."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp

Run = Callable[..., tuple[int, str, str]]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.one(x).relu()
        return {"y": self.two(y * mask), "sum": y.sum(-1)}


@pytest.fixture
def run(command: Run) -> Run:
    torch.manual_seed(0)
    program = fp.capture(Masked().eval(), torch.randn(2, 4), {"mask": torch.rand(2, 8)})
    fp.save(program, "saved")
    return command


def check_same(found: Callable[..., Any]) -> None:
    program = fp.load("saved")
    for size in (2, 5):
        x, mask = torch.randn(size, 4), torch.rand(size, 8)
        torch.testing.assert_close(found(x, mask=mask), program(x, mask=mask))


def test_pt2_is_read_by_torch(run: Run) -> None:
    code, out, _ = run("export", "saved", "--format", "pt2", "--json")
    assert code == 0
    assert json.loads(out)["batches"] == [2, 3]
    check_same(torch.export.load("saved.pt2").module())
    assert run("export", "saved", "--format", "pt2")[0] == 2
    assert run("export", "saved", "--format", "pt2", "--force")[0] == 0


def test_onnx_runs_in_onnxruntime(run: Run) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    code, out, _ = run("export", "saved", "--out", "x.onnx")
    assert code == 0
    assert "agrees with the program" in out
    session = runtime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def found(x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        values = session.run(None, dict(zip(names, (x.numpy(), mask.numpy()), strict=True)))
        return dict(zip(("y", "sum"), map(torch.from_numpy, values), strict=True))

    check_same(found)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_a_package_of_aotinductor_runs(run: Run) -> None:
    assert run("export", "saved", "--format", "aoti", "--out", "x.pt2")[0] == 0
    check_same(torch._inductor.aoti_load_package("x.pt2"))


def test_what_differs_is_not_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("fxprune.verify.check"), "relative_error", lambda *_: 1.0)
    code, out, _ = run("export", "saved", "--format", "pt2")
    assert code == 1
    assert out.startswith("saved.pt2 was not written\nDIFFERS")
    assert not list(Path().glob("*.pt2"))
    assert not list(Path().glob(".fxprune*"))


def test_a_tool_that_is_missing_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run("export", "saved", "--format", "onnx")
    assert code == 2
    assert "onnx needs onnxruntime" in err
    assert "pip install onnxruntime" in err
