"""Data on the command line: scores by it, measuring, and recovery."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fxprune as fp

Command = Callable[..., tuple[int, str, str]]
FILE = """
import torch
from torch import nn
import fxprune as fp

torch.manual_seed(0)
X = torch.randn(16, 6)
Y = torch.randint(3, (16,))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 3)
    def forward(self, x):
        return self.b(self.a(x).relu())

def loader():
    return [(X[:8], Y[:8]), (X[8:], Y[8:])]

def inputs():
    return [X[:8], X[8:]]

named = fp.Calibration([{"x": X}], forward=lambda m, b: m(b["x"]), loss=lambda o, b: o.square().mean())

def fails():
    raise RuntimeError("no disk")

def squares(outputs, batch):
    return outputs.square().mean()
"""
PRUNE = ("prune", "work.py:Net", "--input", "8x6", "--keep", "macs=0.5")


@pytest.fixture
def work(command: Command, tmp_path: Path) -> Command:
    (tmp_path / "work.py").write_text(FILE)
    return command


def test_units_are_scored_by_data(work: Command, tmp_path: Path) -> None:
    plain = work(*PRUNE, "--plan-out", "plain.json")
    scored = work(*PRUNE, "--plan-out", "scored.json", "--data", "work.py:loader")
    named = work(
        *PRUNE,
        "--plan-out",
        "named.json",
        "--data",
        "work.py:loader",
        "--importance",
        "gauss-newton",
    )
    assert [plain[0], scored[0], named[0]] == [0, 0, 0]
    texts = [(tmp_path / f"{name}.json").read_text() for name in ("plain", "scored", "named")]
    assert texts[1] == texts[2] != texts[0]


def test_scores_without_data_are_a_warning(work: Command) -> None:
    code, _, err = work(*PRUNE, "--importance", "activation")
    assert code == 0
    assert "the scores rest on the example inputs alone" in err


def test_evaluate_prints_loss_and_accuracy(work: Command) -> None:
    code, out, _ = work("evaluate", "work.py:Net", "--data", "work.py:loader", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["batches"] == 2
    assert 0 <= found["accuracy"] <= 1
    code, out, _ = work("evaluate", "work.py:Net", "--data", "work.py:named")
    assert code == 0
    assert "accuracy" not in out
    code, out, _ = work(
        "evaluate",
        "work.py:Net",
        "--data",
        "work.py:loader",
        "--loss",
        "work.py:squares",
        "--batches",
        "1",
    )
    assert code == 0
    assert "1 batches" in out


def test_a_pruned_network_recovers_and_is_evaluated(work: Command, tmp_path: Path) -> None:
    assert work(*PRUNE, "--out", "small", "--data", "work.py:loader")[0] == 0
    code, out, _ = work(
        *(
            "recover",
            "small",
            "--teacher",
            "work.py:Net",
            "--data",
            "work.py:inputs",
            "--steps",
            "40",
        ),
        *("--lr", "0.01", "--validation", "work.py:inputs", "--out", "better"),
    )
    assert code == 0
    assert "held-out distance" in out
    small, better = fp.load(tmp_path / "small"), fp.load(tmp_path / "better")
    assert not torch.equal(small(torch.ones(2, 6)), better(torch.ones(2, 6)))
    assert work("evaluate", "better", "--data", "work.py:loader")[0] == 0
    assert [c.title for c in fp.load_report(tmp_path / "better").curves] == ["Recovery"]
    again = work(
        "recover",
        "small",
        "--teacher",
        "work.py:Net",
        "--data",
        "work.py:inputs",
        "--steps",
        "1",
        "--out",
        "better",
    )
    assert again[0] == 2
    assert "has files already" in again[2]


def test_a_model_of_its_class_recovers(work: Command) -> None:
    assert work(*PRUNE, "--class", "--out", "own")[0] == 0
    options = ("--teacher", "work.py:Net", "--data", "work.py:inputs", "--steps", "2", "--trust")
    assert work("recover", "own", *options, "--out", "better")[0] == 0
    assert work("evaluate", "better", "--data", "work.py:loader", "--trust")[0] == 0


WRONG = {
    "no such file": (("--data", "nowhere.py:loader"), "there is no file"),
    "no such name": (("--data", "work.py:loder"), "did you mean loader"),
    "no name": (("--data", "work"), "file.py:callable"),
    "a function that fails": (("--data", "work.py:fails"), "no disk"),
    "a function of a batch": (("--data", "work.py:squares"), "fails"),
    "a loss alone": (("--loss", "work.py:squares"), "add --data"),
    "two losses": (("--data", "work.py:named", "--loss", "work.py:squares"), "a loss of its own"),
    "no loss": (("--data", "work.py:inputs", "--importance", "fisher"), "needs a loss"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_cannot_be_used(case: str, work: Command) -> None:
    words, says = WRONG[case]
    code, out, err = work(*PRUNE, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_sensitivity_prints_and_draws(work: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--data", "work.py:loader", "--plot", "s.png")
    code, out, _ = work("sensitivity", "work.py:Net", *options)
    assert code == 0
    assert "a.weight:0" in out
    assert (tmp_path / "s.png").stat().st_size > 1000
    code, out, _ = work("sensitivity", "work.py:Net", "--data", "work.py:loader", "--json")
    assert code == 0
    (tmp_path / "s.json").write_text(out)
    assert work(*PRUNE, "--out", "small")[0] == 0
    assert work("report", "small", "--curves", "s.json", "--out", "page.html")[0] == 0
    assert "Sensitivity of groups" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "s.json").write_text("{}")
    code, _, err = work("report", "small", "--curves", "s.json", "--out", "other.html")
    assert code == 2
    assert "s.json has no curves" in err
    code, _, err = work("sensitivity", "work.py:Net", "--data", "work.py:inputs")
    assert code == 2
    assert "loss" in err


RESIDUAL = """

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 6)
    def forward(self, x):
        return x + self.lin(x).tanh()

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.blocks, self.head = nn.Sequential(*[Block() for _ in range(4)]), nn.Linear(6, 3)
        with torch.no_grad():
            for p in self.blocks[1].parameters():
                p.mul_(1e-3)
    def forward(self, x):
        return self.head(self.blocks(x))
"""


def test_layers_that_matter_least_go(work: Command, tmp_path: Path) -> None:
    with (tmp_path / "work.py").open("a") as file:
        file.write(RESIDUAL)
    deep = ("layers", "work.py:Deep", "--input", "8x6", "--n", "1")
    for words in (
        ("--data", "work.py:loader", "--importance", "loss"),
        ("--data", "work.py:inputs"),
    ):
        code, out, _ = work(*deep, *words, "--json")
        assert code == 0
        gone = [d["path"] for d in json.loads(out)["deleted"]]
        assert len(gone) == 1
    assert gone == ["blocks.1"]  # it adds hardly anything
    code, out, _ = work(*deep, "--importance", "last", "--out", "shallow")
    assert code == 0
    assert "blocks.3" in out
    assert fp.load(tmp_path / "shallow")(torch.ones(2, 6)).shape == (2, 3)
    for option, says in (("--last=1", "both say which"), ("--importance=loss", "data")):
        code, _, err = work(*deep, option)
        assert code == 2
        assert says in err


def test_a_share_of_the_latency_is_met(
    work: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXPRUNE_LATENCY_CACHE", str(tmp_path / "times.json"))
    with (tmp_path / "work.py").open("a") as file:
        file.write(WIDE)
    code, out, _ = work(
        *("prune", "work.py:wide", "--input", "64x512", "--keep", "latency=0.6", "--json")
    )
    assert code == 0
    latency = json.loads(out)["latency"]
    assert latency["wished"] == 0.6
    assert latency["after"] < latency["before"]
    assert json.loads((tmp_path / "times.json").read_text())


WIDE = """

def wide():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 8))
"""
