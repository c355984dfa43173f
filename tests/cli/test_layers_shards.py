"""`fxprune layers` on a checkpoint: weights stay on disk, and the shorter checkpoint is that of the class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

Command = Callable[..., tuple[int, str, str]]

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())

class Net(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.head = nn.Linear(8, 5)
    def forward(self, x):
        return self.head(self.blocks(x))
"""
WORDS = ("layers", "net.py:Net", "--input", "2x8", "--from", "old")


@pytest.fixture(autouse=True)
def folder(command: Command, tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "data.py").write_text(
        "import torch\nloader = [torch.randn(4, 8) for _ in range(2)]\n"
    )
    space: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    (tmp_path / "old").mkdir()
    save_file(space["Net"]().state_dict(), tmp_path / "old" / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "which", [("--delete", "blocks.1"), ("--n", "1", "--data", "data.py:loader")]
)
def test_a_layer_leaves_the_checkpoint(
    command: Command, folder: Path, which: tuple[str, ...]
) -> None:
    code, out, err = command(*WORDS, "--to", "new", *which, "--json")
    assert code == 0, err
    assert json.loads(out)["written"]["left_out"] == 6
    old, new = (load_file(folder / name / "model.safetensors") for name in ("old", "new"))
    space: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, space)
    short = space["Net"](2)
    short.load_state_dict(new)
    left = [
        i for i in range(3) if any(torch.equal(old[f"blocks.{i}.up.bias"], t) for t in new.values())
    ]
    assert len(left) == 2
    for place, i in enumerate(left):
        assert torch.equal(new[f"blocks.{place}.down.weight"], old[f"blocks.{i}.down.weight"])


def test_the_answer_says_what_was_written(command: Command) -> None:
    code, out, _ = command(*WORDS, "--to", "new", "--last", "1")
    assert code == 0
    assert "new: 1 shards, 0 tensors cut, 6 left out, " in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--last", "1"), "--to DIR"),
        (("--last", "1", "--to", "new", "--out", "graph"), "--out needs the weights in memory"),
        (("--last", "1", "--to", "new", "--weights", "x.pt"), "--weights needs the weights"),
        (("--last", "1", "--to", "old"), "into the one that is read"),
    ],
)
def test_what_does_not_fit_is_refused(
    command: Command, folder: Path, words: tuple[str, ...], says: str
) -> None:
    before = (folder / "old" / "model.safetensors").read_bytes()
    code, out, err = command(*WORDS, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert not (folder / "new").exists()
    assert (folder / "old" / "model.safetensors").read_bytes() == before


def test_a_target_needs_a_source(command: Command) -> None:
    code, _, err = command("layers", "net.py:Net", "--input", "2x8", "--last", "1", "--to", "new")
    assert code == 2
    assert "--from DIR" in err
