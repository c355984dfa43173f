"""What the pages of the documentation take for granted: a small network, its data, the names of a loop."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import fxprune as fp
from fxprune.importance import table as criteria
from fxprune.pipeline import Context, Rewrite
from fxprune.rules import table as rules
from fxprune_passes import methods
from fxprune_passes.insert.insert_gates import InsertGates
from fxprune_passes.rewrite.drop_identity import DropIdentity
from fxprune_passes.rewrite.fold_batchnorm import FoldBatchnorm

RELU = torch.ops.aten.relu.default


class Block(nn.Module):
    """Two convolutions around a shortcut, of a ResNet's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Network(nn.Module):
    """A ResNet-18 of 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = (nn.Sequential(Block(), Block()) for _ in range(2))
        self.layer3, self.layer4 = (nn.Sequential(Block(), Block()) for _ in range(2))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))


class Detector(nn.Module):
    """Reads a value of its own, and does not export whole."""

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


def my_fx_pass(module: fx.GraphModule) -> None:
    """Finds nothing to do."""


def is_second_relu(node: fx.Node) -> bool:
    return node.target is RELU and any(n.target is RELU for n in node.all_input_nodes)


def missing(*names: str) -> bool:
    """Whether one of these packages is not installed: `<!--- skip: next if(missing("onnx"), reason="...") -->`."""
    return any(find_spec(name) is None for name in names)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a page may use without saying where they come from.

    A page runs in a folder of its own; what it registers is forgotten afterwards.
    """
    monkeypatch.chdir(tmp_path)
    criteria.load_criteria()
    rules.load_rules()
    for table in (criteria, rules):
        monkeypatch.setattr(table, "_table", dict(table._table))
    modules: dict[str, dict[str, Any]] = {
        "my": {},
        "my.detector": {"make": make_detector},
        "my_package": {},
        "my_package.passes": {"my_fx_pass": my_fx_pass},
    }
    for name, found in modules.items():
        module = ModuleType(name)
        vars(module).update(found)
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    model, example = Network().eval(), torch.randn(2, 3, 8, 8)
    program = fp.capture(model, example)
    data = [(torch.randn(4, 3, 8, 8), torch.randint(10, (4,))) for _ in range(2)]
    return {
        "__name__": "example",
        **{name: value for name, value in vars(methods).items() if isinstance(value, type)},
        "ClassVar": ClassVar,
        "Context": Context,
        "Dim": Dim,
        "DropIdentity": DropIdentity,
        "FoldBatchnorm": FoldBatchnorm,
        "InsertGates": InsertGates,
        "PassManager": PassManager,
        "Program": fp.Program,
        "Rewrite": Rewrite,
        "StepLR": StepLR,
        "accuracy": lambda program: 1.0,
        "adds_noise": my_fx_pass,
        "args": example,
        "batches": data,
        "cross_entropy": cross_entropy,
        "data": data,
        "dataclass": dataclass,
        "decide": lambda program, epoch: None,
        "detector": make_detector(),
        "epochs": 2,
        "example": example,
        "fp": fp,
        "history": fp.training.History(),
        "is_second_relu": is_second_relu,
        "loss": torch.tensor(0.5),
        "make_detector": make_detector,
        "missing": missing,
        "model": model,
        "module": copy.deepcopy(program.module),
        "my_fx_pass": my_fx_pass,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "pipeline": "drop-identity | dead-code",
        "plan_for": lambda program: fp.plan(program, {"layer1.0.conv1.weight": (0, [0])}),
        "program": program,
        "right": torch.tensor(3),
        "torch": torch,
    }
