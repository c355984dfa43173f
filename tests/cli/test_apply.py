"""`fxprune apply`: a plan, a checkpoint, and the model without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxprune as fp

NETWORK = """
from types import SimpleNamespace
import torch
from torch import nn
class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(config.hidden)), config.eps
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
class Config(SimpleNamespace):
    pass
class Net(nn.Module):
    def __init__(self, config=Config(hidden=16, eps=1e-6)):
        super().__init__()
        self.config, hidden = config, config.hidden
        self.norm = Norm(config)
        self.one, self.two = nn.Linear(4, hidden), nn.Linear(hidden, 2)
    def forward(self, x):
        return self.two(self.norm(self.one(x)))
"""
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(command: Command, tmp_path: Path) -> Path:
    """With a class, its checkpoint, and a plan for it whose average a norm takes over."""
    (tmp_path / "net.py").write_text(NETWORK)
    space: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, space)
    model = space["Net"]().eval()
    fp.plan(fp.capture(model, torch.randn(2, 4)), {"one.weight": (0, [1, 9])}).save("plan.json")
    (tmp_path / "old").mkdir()
    save_file(model.state_dict(), tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "config.json").write_text('{"hidden": 16}')
    return tmp_path


WORDS = ("apply", "plan.json", "--from", "old", "--to", "new")


def test_a_plan_is_applied_to_a_checkpoint(command: Command, folder: Path) -> None:
    code, out, err = command(*WORDS, "--model", "net.py:Net", "--input", "2x4", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["cut"] == 4
    old, new = (load_file(folder / name / "model.safetensors") for name in ("old", "new"))
    kept = [i for i in range(16) if i not in (1, 9)]
    assert torch.equal(new["one.weight"], old["one.weight"][kept])
    torch.testing.assert_close(new["norm.weight"], old["norm.weight"][kept] * (16 / 14) ** 0.5)
    assert json.loads((folder / "new" / "config.json").read_text()) == {
        "hidden": 14,
        "eps": pytest.approx(1e-6 * 16 / 14),
    }


def test_without_the_model_factors_are_refused(command: Command, folder: Path) -> None:
    code, _, err = command(*WORDS)
    assert code == 2
    assert "more than to select positions" in err
    assert "--model" in err
    assert not (folder / "new").exists()


def test_numbers_of_the_config_are_given(command: Command, folder: Path) -> None:
    code, _, err = command(*WORDS, "--set", "hidden=x")
    assert code == 2
    assert "--set" in err
    code, out, _ = command(*WORDS, "--model", "net.py:Net", "--input", "2x4", "--set", "hidden=15")
    assert code == 0
    assert out.startswith("new: 1 shards, 4 tensors cut, ")
    assert json.loads((folder / "new" / "config.json").read_text())["hidden"] == 15


def test_a_plan_is_made_by_data_from_a_checkpoint(command: Command, folder: Path) -> None:
    (folder / "data.py").write_text(
        "import torch\nloader = [torch.randn(3, 4) for _ in range(2)]\n"
    )
    words = ("prune", "net.py:Net", "--from", "old", "--input", "2x4", "--data", "data.py:loader")
    code, out, _ = command(*words, "--plan-out", "made.json", "--json", "--fits-class")
    assert code == 0
    checks = json.loads(out)["checks"]
    assert [c["ok"] for c in checks] == [True] * len(checks)
    code, _, err = command(
        *("apply", "made.json", "--from", "old", "--to", "new", "--model", "net.py:Net"),
        *("--input", "2x4"),
    )
    assert (code, err) == (0, "")
    width = json.loads((folder / "new" / "config.json").read_text())["hidden"]
    assert width == len(load_file(folder / "new" / "model.safetensors")["one.bias"]) < 16


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--plan-out"),
        (("--plan-out", "made.json", "--out", "smaller"), "--out needs the weights in memory"),
        (("--plan-out", "made.json", "--weights", "x.pt"), "--weights needs the weights"),
        (("--plan-out", "made.json", "--importance", "taylor"), "taylor"),
    ],
)
def test_what_needs_the_weights_in_memory_is_refused(
    command: Command, folder: Path, words: tuple[str, ...], says: str
) -> None:
    (folder / "data.py").write_text(
        "import torch\nloader = [torch.randn(3, 4) for _ in range(2)]\n"
    )
    made = ("prune", "net.py:Net", "--from", "old", "--input", "2x4", "--data", "data.py:loader")
    code, out, err = command(*made, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert not (folder / "made.json").exists()
