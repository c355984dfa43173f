"""Where the pages of the documentation run: a folder of their own, and a small detector for docs/partial.md."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.importance import table as criteria
from fxprune.rules import table as rules


class Detector(nn.Module):
    """Reads a value of its own, and cannot be captured whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 8), nn.ReLU(), nn.Conv2d(12, 4, 1))
        self.head = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))

    def forward(self, images: Any) -> Any:
        y = self.body(torch.stack(list(images)))
        return self.head(y) if float(y.sum()) < 1e9 else y


def make_detector() -> nn.Module:
    torch.manual_seed(0)
    return Detector().eval()


def missing(*names: str) -> bool:
    """Whether one of these packages is not installed: `<!--- skip: next if(missing("onnx"), reason="...") -->`."""
    return any(find_spec(name) is None for name in names)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a page starts with; what it registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    criteria.load_criteria()
    rules.load_rules()
    for table in (criteria, rules):
        monkeypatch.setattr(table, "_table", dict(table._table))
    module = ModuleType("my.detector")
    vars(module)["make"] = make_detector
    monkeypatch.setitem(sys.modules, "my", ModuleType("my"))
    monkeypatch.setitem(sys.modules, "my.detector", module)
    torch.manual_seed(0)
    return {
        "__name__": "example",
        "fp": fp,
        "make_detector": make_detector,
        "missing": missing,
        "torch": torch,
    }
