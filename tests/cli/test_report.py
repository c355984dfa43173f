"""The report of a saved directory as a page, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.report import Curves, Latency

Run = Callable[..., tuple[int, str, str]]
NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
"""


@pytest.fixture
def run(command: Run) -> Run:
    torch.manual_seed(0)
    Path("own_net.py").write_text(NET)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    fp.save(fp.prune(net, torch.randn(2, 4)), "saved")
    return command


def page() -> str:
    return Path("saved.html").read_text(encoding="utf-8")


def test_the_page_of_a_program_has_its_ties(run: Run) -> None:
    code, out, _ = run("report", "saved", "--json")
    assert code == 0
    assert json.loads(out) == {"file": "saved.html", "bytes": Path("saved.html").stat().st_size}
    assert page().count("2.weight") >= 2
    assert "aten.linear.default" in page()


def test_a_file_that_is_there_is_replaced_with_force_only(run: Run) -> None:
    Path("x.html").write_text("mine")
    code, _, err = run("report", "saved", "--out", "x.html")
    assert (code, Path("x.html").read_text()) == (2, "mine")
    assert "--force" in err
    assert run("report", "saved", "--out", "x.html", "--force")[0] == 0
    assert Path("x.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("out", ["x.txt", "no/x.html", "."])
def test_a_file_that_cannot_be_written_is_refused(run: Run, out: str) -> None:
    code, _, err = run("report", "saved", "--out", out)
    assert code == 2
    assert "--out" in err


@pytest.mark.parametrize("folder", ["nowhere", "empty", "own_net.py", "\0", "x" * 5000])
def test_what_is_no_saved_directory_is_refused(run: Run, folder: str) -> None:
    Path("empty").mkdir()
    code, out, err = run("report", folder, "--out", "x.html")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err
    assert not Path("x.html").exists()


def test_a_directory_without_a_report_is_refused(run: Run) -> None:
    fp.save(fp.load("saved"), "plain")
    code, _, err = run("report", "plain")
    assert code == 2
    assert "plain has no report" in err


def test_an_altered_report_is_refused(run: Run) -> None:
    with Path("saved/report.json").open("a") as stream:
        stream.write(" ")
    code, _, err = run("report", "saved")
    assert code == 2
    assert "report.json is truncated or altered" in err


def test_what_was_measured_is_saved_with_the_report(run: Run) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    found = fp.prune(net, torch.randn(2, 4))
    measured = replace(
        found.report,
        latency=Latency(2.0, 1.0, 0.5, 9, 1),
        curves=(Curves("Sensitivity", "share", "loss", {"a": [(0, 1)]}),),
    )
    fp.save(replace(found, report=measured), "measured")
    assert run("report", "measured", "--out", "saved.html")[0] == 0
    assert "2.0 ms" in page()
    assert "Sensitivity" in page()


def test_a_model_of_its_own_class_is_built_only_with_trust(run: Run) -> None:
    words = ("own_net.py:make", "--input", "2x4", "--class", "--out", "own")
    assert run("prune", *words)[0] == 0
    assert run("report", "own", "--out", "saved.html")[0] == 0
    assert "without the graph of the network" in page()
    assert run("report", "own", "--out", "saved.html", "--force", "--trust")[0] == 0
    assert "aten.linear.default" in page()


def test_a_model_pruned_in_parts_has_a_page_without_ties(run: Run) -> None:
    assert run("prune", "own_net.py:make", "--input", "2x4", "--partial", "--out", "parts")[0] == 0
    assert run("report", "parts", "--out", "saved.html")[0] == 0
    assert "without the graph of the network" in page()
    assert "2.weight:1" in page()
