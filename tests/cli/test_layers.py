"""Deleting residual blocks from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fxprune as fp

NETWORK = """
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 6)
    def forward(self, x):
        return x + self.two(self.one(x).relu())
class Net(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList([Block() for _ in range(depth)])
    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
"""
MODEL = ("net_of_blocks.py:Net", "--input", "2x4", "--weights", "w.pt")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "net_of_blocks.py").write_text(NETWORK)
    command("summary", *MODEL[:3])
    torch.save(import_module("net_of_blocks").Net().state_dict(), "w.pt")
    return command


def test_blocks_are_listed(run: Run) -> None:
    code, out, err = run("layers", *MODEL, "--json")
    assert (code, err) == (0, "")
    assert [(b["path"], b["parameters"]) for b in json.loads(out)] == [
        (f"blocks.{i}", 35 + 36) for i in range(3)
    ]
    assert "3 residual blocks" in run("layers", *MODEL)[1]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("--delete", "blocks.1"), (0, 2)),
        (("--delete", "blocks.0", "--delete", "*.[12]"), ()),
        (("--last", "2"), (0,)),
    ],
)
def test_what_is_left_computes_as_the_model_without(
    run: Run, words: tuple[str, ...], left: tuple[int, ...]
) -> None:
    code, out, err = run("layers", *MODEL, *words, "--out", "small")
    assert (code, err) == (0, "")
    assert f"deleted {3 - len(left)} of 3 residual blocks" in out
    model = import_module("net_of_blocks").Net()
    model.load_state_dict(torch.load("w.pt"))
    model.blocks = torch.nn.ModuleList([model.blocks[i] for i in left])
    x = torch.randn(3, 4)
    program = fp.load("small")
    torch.testing.assert_close(program(x), model.eval()(x))
    assert sum(p.numel() for p in program.module.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert len(json.loads(run("layers", "small", "--json")[1])) == len(left)
