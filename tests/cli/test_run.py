"""The command line about passes: output, files, exit codes, environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fxprune as fp
from fxprune.pipeline.remarks import read_remarks

NETWORK = """
import torch
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.1), nn.Dropout(0.2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
def double(module):
    with torch.no_grad():
        module.get_parameter("0.weight").mul_(2)
def no_change(module):
    pass
def has_dropout(program):
    return any("dropout" in str(n.target) for n in program.nodes)
"""
MODEL = ("net_of_passes:make", "--input", "2x3x8x8")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command: Run, tmp_path: Path) -> Run:
    (tmp_path / "net_of_passes.py").write_text(NETWORK)
    return command


def model(pipeline: str) -> tuple[str, ...]:
    return (MODEL[0], pipeline, *MODEL[1:])


def test_run_prints_sizes_steps_and_remarks(run: Run) -> None:
    code, out, _ = run("run", *model("drop-identity | drop-identity"))
    assert code == 0
    for words in ("Conv2d", "1 agree", "remarks of", "drop-identity.unchanged"):
        assert words in out


def test_run_verifies_as_it_is_told(run: Run) -> None:
    for how, regions in (("local", False), ("full", True)):
        _, out, _ = run("run", *model("drop-identity"), "--verify", how, "--json")
        assert (json.loads(out)["steps"][0]["checks"][0]["regions"] is None) == regions
    assert run("run", *model("drop-identity"), "--verify", "half")[0] == 2


def test_run_prints_what_it_is_asked_for_on_stderr(run: Run) -> None:
    options = ("--print-before", "drop-*", "--print-after", "x", "--print-changed", "--time-passes")
    code, out, err = run("run", *model("drop-identity"), *options, "--json", "--no-verify-each")
    assert code == 0
    data = json.loads(out)
    assert data["steps"][0]["rewrites"] == 2
    assert data["steps"][0]["checks"] == []
    for words in ("=== graph before drop-identity", "- dropout = aten.dropout", "peak memory"):
        assert words in err
    assert "graph after" not in err


def test_run_writes_remarks_and_the_program(run: Run) -> None:
    files = ("--remarks", "remarks.jsonl", "--out", "smaller")
    code, _, _ = run("run", *model("drop-identity"), *files, "--limit", "1")
    assert code == 0
    assert [r.code for r in read_remarks("remarks.jsonl")] == ["drop-identity.dropped"]
    left = [n for n in fp.load("smaller").nodes if "dropout" in str(n.target)]
    assert len(left) == 1


def test_a_disabled_pass_does_nothing(run: Run) -> None:
    code, out, _ = run("run", *model("drop-identity"), "--disable", "drop-*", "--json")
    assert code == 0
    assert json.loads(out)["steps"][0]["disabled"]


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        ("drop-identty", "the nearest name is 'drop-identity'"),
        ("drop-identity{x=1}", "drop-identity has no option 'x'"),
        ("fx{call=net_of_passes:gone}", "there is no function net_of_passes:gone"),
    ],
)
def test_what_cannot_be_done_exits_with_2(run: Run, pipeline: str, says: str) -> None:
    code, _, err = run("run", *model(pipeline))
    assert code == 2
    assert says in err


def test_a_failed_check_exits_with_1_and_can_be_replayed(run: Run) -> None:
    pipeline = "drop-identity | fx{call=net_of_passes:double}"
    code, _, err = run("run", *model(pipeline), "--reproducer", "failed", "--seed", "3")
    assert code == 1
    assert err.splitlines()[-1].endswith("to replay the failure, run: fxprune replay failed")
    code, _, again = run("replay", "failed")
    assert code == 1
    assert again.splitlines()[0] == err.splitlines()[0]


def test_a_failure_that_has_gone_exits_with_0(run: Run) -> None:
    run("run", *model("fx{call=net_of_passes:double}"), "--reproducer", "failed")
    facts = Path("failed/reproducer.json")
    facts.write_text(facts.read_text().replace("passes:double", "passes:no_change"))
    code, out, err = run("replay", "failed")
    assert code == 0
    assert "the failure did not occur again" in err
    assert "fx{call=net_of_passes:no_change}" in out


def test_replay_of_something_else_exits_with_2(run: Run) -> None:
    code, _, err = run("replay", "nothing")
    assert code == 2
    assert "does not contain a reproducer" in err


def test_bisect_names_the_rewrite(run: Run) -> None:
    words = ("--bisect", "--check", "net_of_passes:has_dropout")
    code, out, _ = run("run", *model("drop-identity"), *words)
    assert code == 1
    assert "the cause is rewrite 2, one of 2" in out
    code, out, _ = run("run", *model("drop-identity"), "--bisect", "--json")
    assert code == 0
    assert not json.loads(out)["found"]
    code, _, err = run("run", *model("drop-identity"), "--bisect", "--check", "gone:gone")
    assert code == 2
    assert "there is no function gone:gone" in err


def test_the_environment_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_PRINT_CHANGED", "1")
    _, _, err = run("run", *model("drop-identity"))
    assert "=== changes made by drop-identity" in err
    monkeypatch.setenv("FXPRUNE_TIME_PASSES", "maybe")
    code, _, err = run("run", *model("drop-identity"))
    assert code == 2
    assert "FXPRUNE_TIME_PASSES=maybe cannot be used" in err


def test_passes_lists_kinds_what_is_kept_and_options(run: Run) -> None:
    code, out, _ = run("passes", "--json")
    found = {p["name"]: p for p in json.loads(out)}
    assert code == 0
    assert (found["drop-identity"]["kind"], found["drop-identity"]["keeps"]) == (
        "rewrite",
        "function",
    )
    assert found["fx"]["options"] == "call=... changes=false"


def fresh(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that has imported nothing of the user's."""
    return subprocess.run(
        [sys.executable, "-m", "fxprune", *words], capture_output=True, text=True, check=False
    )


def test_a_function_of_a_module_that_was_not_imported_needs_trust(run: Run) -> None:
    Path("marked.py").write_text("import os\nos.mkdir('ran')\ndef f(module):\n    pass\n")
    words = ("run", *model("fx{call=marked:f}"))
    code, _, err = run(*words)
    assert code == 2
    assert "--trust" in err
    assert not Path("ran").exists()
    assert run(*words, "--trust")[0] == 0
    assert Path("ran").exists()


def test_replay_in_another_process_needs_trust_for_modules_of_the_folder(run: Run) -> None:
    run("run", *model("fx{call=net_of_passes:double}"), "--reproducer", "failed")
    refused, trusted = fresh("replay", "failed"), fresh("replay", "failed", "--trust")
    assert refused.returncode == 2
    assert "net_of_passes:double is in a module that was not imported" in refused.stderr
    assert trusted.returncode == 1
    assert "Traceback" not in refused.stderr + trusted.stderr


def test_a_reproducer_names_no_class_that_is_no_pass(run: Run) -> None:
    run("run", *model("fx{call=net_of_passes:double}"), "--reproducer", "failed")
    facts = json.loads(Path("failed/reproducer.json").read_text())
    for name in ("os:system", "subprocess:Popen", "json:loads"):
        facts["pipeline"], facts["passes"] = "evil{x=1}", {"evil": name}
        Path("failed/reproducer.json").write_text(json.dumps(facts))
        code, _, err = run("replay", "failed")
        assert (code, f"{name} is no pass" in err) == (2, True)
