"""The command line: output, files and exit codes."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fxprune.partial import capture_partial

NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
"""
IN_PARTS = """
import torch
from torch import nn
class Sorter(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
                                  nn.Conv2d(12, 4, 1))
        self.head = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
    def forward(self, x):
        y = self.body(x)
        return self.head(y) if float(y.sum()) < 1e9 else y
"""
MODEL = ("my_network:make", "--input", "2x3x8x8")
PARTIAL = ("my_parts:Sorter", "--input", "2x3x6x6", "--partial")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command: Run, tmp_path: Path) -> Run:
    (tmp_path / "my_network.py").write_text(NETWORK)
    (tmp_path / "my_parts.py").write_text(IN_PARTS)
    return command


def test_summary_is_a_table(run: Run) -> None:
    code, out, _ = run("summary", *MODEL)
    assert code == 0
    assert "Conv2d" in out
    assert out.splitlines()[-1].startswith("total")


def test_json_is_one_document(run: Run) -> None:
    code, out, _ = run("summary", *MODEL, "--json")
    assert code == 0
    assert json.loads(out)["total"]["parameters"] == 448 + 32 + 2320 + 68


def test_groups_lists_members(run: Run) -> None:
    _, out, _ = run("groups", *MODEL, "--json")
    assert json.loads(out)[0]["members"][0] == {"param": "0.weight", "axis": 0, "role": "producer"}


def test_explain_names_what_goes_along(run: Run) -> None:
    code, out, _ = run("explain", MODEL[0], "0.weight", "0", *MODEL[1:])
    assert code == 0
    assert "3.weight, axis 1" in out


def test_prune_reaches_its_target(run: Run) -> None:
    code, out, _ = run("prune", *MODEL, "--keep", "params=0.5", "--json")
    assert code == 0
    assert json.loads(out)["ratios"]["parameters"] <= 0.51


def test_prune_saves_a_program_that_is_opened_again(run: Run) -> None:
    run("prune", *MODEL, "--out", "smaller")
    code, out, _ = run("summary", "smaller")
    assert code == 0
    assert "Conv2d" in out


def test_saved_plan_verifies(run: Run) -> None:
    run("prune", *MODEL, "--plan-out", "plan.json", "--no-verify")
    code, out, _ = run("verify", *MODEL, "--plan", "plan.json")
    assert code == 0
    assert out.startswith("agrees")


def check_failure(run: Run, monkeypatch: pytest.MonkeyPatch, *model: str) -> None:
    run("prune", *model, "--plan-out", "plan.json", "--no-verify")
    monkeypatch.setattr(import_module("fxprune.verify.check"), "relative_error", lambda *_: 1.0)
    code, out, _ = run("verify", *model, "--plan", "plan.json")
    assert code == 1
    assert out.startswith("DIFFERS")


def test_failed_check_exits_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    check_failure(run, monkeypatch, *MODEL)


def test_passes_are_listed(run: Run) -> None:
    code, out, _ = run("passes")
    assert code == 0
    assert "drop-identity" in out


def test_failed_capture_names_the_option(run: Run) -> None:
    code, out, err = run("summary", *PARTIAL[:-1])
    assert (code, out) == (2, "")
    assert "--partial" in err.splitlines()[-1]


def test_parts_are_named_on_stderr(run: Run) -> None:
    code, out, err = run("summary", *PARTIAL, "--json")
    assert code == 0
    assert json.loads(out)["total"]["parameters"] == 336 + 24 + 52 + 80 + 34
    assert "captured in parts: body, head" in err
    assert "the model (Sorter)" in err


def test_groups_of_parts(run: Run) -> None:
    code, out, _ = run("groups", *PARTIAL, "--json")
    assert code == 0
    assert [g["name"] for g in json.loads(out)] == ["body.0.weight:0", "head.0.weight:0"]


def test_explain_in_parts(run: Run) -> None:
    code, out, _ = run("explain", PARTIAL[0], "head.0.weight", "0", *PARTIAL[1:])
    assert code == 0
    assert "head.2.weight, axis 1" in out


def test_prune_in_parts_and_load_again(run: Run) -> None:
    code, out, _ = run("prune", *PARTIAL, "--keep", "params=0.6", "--out", "smaller", "--json")
    assert code == 0
    assert len(json.loads(out)["checks"]) == 2
    names = {p.name for p in Path("smaller").iterdir()}
    assert names == {
        *("manifest.json", "parts.json", "plan.json", "report.json", "weights.safetensors")
    }
    code, out, _ = run("verify", *PARTIAL, "--plan", "smaller/plan.json")
    assert code == 0
    assert out.startswith("agrees")
    partial = capture_partial(import_module("my_parts").Sorter().eval(), (torch.randn(2, 3, 6, 6),))
    smaller = partial.load("smaller")
    assert sum(p.numel() for p in smaller.parameters()) < 0.62 * 526


def test_saved_parts_are_no_program(run: Run) -> None:
    run("prune", *PARTIAL, "--no-verify", "--out", "smaller")
    code, out, err = run("summary", "smaller")
    assert (code, out) == (2, "")
    assert "fp.capture_partial(model, args).load(directory)" in err


def test_failed_check_of_parts_exits_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    check_failure(run, monkeypatch, *PARTIAL)


BAD = {
    "model": ("summary", "nosuch"),
    "input": ("summary", MODEL[0], "--input", "2,3"),
    "no input": ("summary", MODEL[0]),
    "keep": ("prune", *MODEL, "--keep", "half"),
    "share": ("prune", *MODEL, "--keep", "1.2"),
    "metric": ("prune", *MODEL, "--keep", "flops=0.5"),
    "criterion": ("prune", *MODEL, "--importance", "nosuch"),
    "ignore": ("prune", *MODEL, "--ignore", "nosuch.*"),
    "plan": ("verify", *MODEL, "--plan", "none.json"),
    "param": ("explain", MODEL[0], "nosuch", *MODEL[1:]),
    "option": ("summary", *MODEL, "--nosuch"),
    "model that does not run": ("summary", PARTIAL[0], "--input", "2x5x6x6", "--partial"),
    "directory in parts": ("summary", ".", "--partial"),
    "out": ("prune", *MODEL, "--no-verify", "--out", "."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_2_and_no_traceback(run: Run, case: str) -> None:
    code, out, err = run(*BAD[case])
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["summary", "groups", "prune", "explain", "verify", "passes"])
def test_help_teaches(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "Example:" in out or verb == "passes"
