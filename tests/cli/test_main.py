"""The command line: output, files and exit codes."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from fxprune.cli.main import main

NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
"""
MODEL = ("my_network:make", "--input", "2x3x8x8")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    (tmp_path / "my_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fxprune", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

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


def test_failed_check_exits_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("prune", *MODEL, "--plan-out", "plan.json", "--no-verify")
    monkeypatch.setattr(import_module("fxprune.verify"), "relative_error", lambda *_: 1.0)
    code, out, _ = run("verify", *MODEL, "--plan", "plan.json")
    assert code == 1
    assert out.startswith("DIFFERS")


def test_passes_are_listed(run: Run) -> None:
    code, out, _ = run("passes")
    assert code == 0
    assert "drop-identity" in out


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
