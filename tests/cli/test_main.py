"""The command line: output, files and exit codes."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fxprune as fp
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
BY_KEYWORD = """
from torch import nn
class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)
    def forward(self, x, *, mask):
        return self.two(self.one(x).relu().masked_fill(mask, 0))
"""
SPELLED = """
from torch import nn
class Spelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
    def forward(self, x):
        return self.three(self.two(self.one(x).view(-1, 8)))
"""
CONFIGURED = """
from types import SimpleNamespace
from torch import nn
class Config(SimpleNamespace):
    pass
class Configured(nn.Module):
    def __init__(self, config=Config(hidden=8)):
        super().__init__()
        self.config = config
        self.one, self.two = nn.Linear(4, config.hidden), nn.Linear(config.hidden, 2)
    def forward(self, x):
        return self.two(self.one(x).relu())
"""
MODEL = ("my_network:make", "--input", "2x3x8x8")
PARTIAL = ("my_parts:Sorter", "--input", "2x3x6x6", "--partial")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command: Run, tmp_path: Path) -> Run:
    (tmp_path / "my_network.py").write_text(NETWORK)
    (tmp_path / "my_parts.py").write_text(IN_PARTS)
    (tmp_path / "by_keyword.py").write_text(BY_KEYWORD)
    (tmp_path / "spelled.py").write_text(SPELLED)
    (tmp_path / "configured.py").write_text(CONFIGURED)
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


def test_an_input_by_keyword_is_passed_by_its_name(run: Run) -> None:
    words = "by_keyword:Masked", "--input", "2x4", "--input", "mask=2x1:bool"
    code, out, err = run("prune", *words, "--keep", "macs=0.5", "--json")
    assert code == 0
    assert "random weights" in err
    assert json.loads(out)["checks"][0]["ok"]


def test_a_missing_keyword_is_named(run: Run) -> None:
    code, _, err = run("summary", "by_keyword:Masked", "--input", "2x4")
    assert code == 2
    assert "(x, *, mask)" in err


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


def test_prune_keeps_shares_of_the_units_of_modules(run: Run) -> None:
    code, out, _ = run("prune", *MODEL, "--keep", "0.*=0.5", "--keep", "*=1.0", "--json")
    assert code == 0
    found = {g["name"]: (g["units"], g["kept"]) for g in json.loads(out)["groups"]}
    units, kept = found.pop("0.weight:0")
    assert kept == units // 2
    assert all(units == kept for units, kept in found.values())


def test_prune_within_what_the_class_can_express(run: Run) -> None:
    model = ("spelled:Spelled", "--input", "2x4")
    code, out, _ = run("prune", *model, "--keep", "0.8", "--fits-class", "--json")
    groups = {g["name"]: g for g in json.loads(out)["groups"]}
    assert code == 0
    assert groups["one.weight:0"]["kept"] == 8
    assert groups["two.weight:0"]["kept"] < 8
    code, _, err = run("prune", *PARTIAL, "--fits-class")
    assert code == 2
    assert "--fits-class" in err


def test_prune_to_a_wished_config(run: Run) -> None:
    model = ("configured:Configured", "--input", "2x4")
    code, out, _ = run("prune", *model, "--to", "hidden=5", "--json")
    assert code == 0
    assert [g["kept"] for g in json.loads(out)["groups"] if g["name"] == "one.weight:0"] == [5]
    code, _, err = run("prune", *model, "--to", "hidden=5", "--keep", "0.5")
    assert code == 2
    assert "already says" in err
    code, _, err = run("prune", *model, "--to", "hidden")
    assert code == 2
    assert "--to hidden_size=1536" in err


def test_prune_saves_a_program_that_is_opened_again(run: Run) -> None:
    run("prune", *MODEL, "--out", "smaller")
    code, out, _ = run("summary", "smaller")
    assert code == 0
    assert "Conv2d" in out


@pytest.mark.parametrize(
    ("words", "free"),
    [
        ((), [0, 2, 3]),
        (("--dynamic", "all"), [0, 2, 3]),
        (("--dynamic", "none"), []),
        (("--dynamic", "batch"), [0]),
        (("--dynamic", "input=0,3"), [0, 3]),
    ],
)
def test_axes_are_free_as_asked(run: Run, words: tuple[str, ...], free: list[int]) -> None:
    code, _, err = run("prune", *MODEL, *words, "--keep", "params=0.6", "--out", "small")
    assert code == 0, err
    assert [i for axes in fp.load("small").free_axes.values() for i in axes] == free


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--dynamic", "input"), "names no axes"),
        (("--dynamic", "input=1"), "has to be free is not"),
        (("--dynamic", "y=0"), "no input 'y'"),
        (("--dynamic", "all", "--partial"), "leave out --dynamic"),
    ],
)
def test_axes_that_cannot_be_free_are_an_error(run: Run, words: tuple[str, ...], what: str) -> None:
    code, _, err = run("prune", *MODEL, *words)
    assert code == 2
    assert what in err


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
    assert len(json.loads(out)["checks"]) == 3
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
    "two metrics": ("prune", *MODEL, "--keep", "macs=0.5", "--keep", "params=0.5"),
    "no module": ("prune", *MODEL, "--keep", "layer9.*=0.5"),
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


@pytest.mark.parametrize(
    "verb", ["summary", "groups", "prune", "explain", "verify", "layers", "export", "passes"]
)
def test_help_teaches(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "Example" in out or verb == "passes"


WRONG = {
    "a plan in no folder": "prune {model} --no-verify --plan-out nodir/p.json",
    "a plan over a folder": "prune {model} --no-verify --plan-out folder",
    "out below a file": "prune {model} --no-verify --out afile/x",
    "out over a file": "prune {model} --no-verify --out afile",
    "out over a folder of others": "prune {model} --no-verify --out folder",
    "out at a link to nothing": "prune {model} --no-verify --out dangling",
    "out of a long name": "prune {model} --no-verify --out " + "a" * 300,
    "a seed of many digits": "prune {model} --seed " + "9" * 23,
    "a seed below 0": "summary {model} --seed -1",
    "a multiple of many digits": "prune {model} --multiple-of " + "9" * 20,
    "a multiple of 0": "prune {model} --multiple-of 0",
    "a depth below 0": "summary {model} --depth -1",
    "a limit below 0": "run my_network:make dead-code --input 2x3x8x8 --limit -1",
    "a share that is no number": "prune {model} --keep macs=nan",
    "a share that is infinite": "prune {model} --keep macs=inf",
    "a metric that is none": "prune {model} --keep weight=0.5",
    "a criterion that is none": "prune {model} --importance nothing",
    "a scope that is none": "prune {model} --scope nothing",
    "an axis of many digits": "explain my_network:make 0.weight " + "9" * 20 + " --input 2x3x8x8",
    "an axis below 0": "explain my_network:make 0.weight --input 2x3x8x8 -- -9",
    "an input of many digits": "prune my_network:make --input " + "9" * 20 + "x3",
    "an input of many bytes": "prune my_network:make --input 1000000000x1000000000",
    "an input that is not of the model": "prune my_network:make --input 2x5x8x8",
    "an input of a type that is none": "summary my_network:make --input 2x3:Tensor",
    "an input of digits of others": "summary my_network:make --input ²x3",
    "a model that raises": "prune failing:boom --input 2x3x8x8",
    "a model that exits": "prune failing:leaves --input 2x3x8x8",
    "a module that raises": "prune raising:make --input 2x3x8x8",
    "a module that is no Python": "prune broken:make --input 2x3x8x8",
    "a module of dots": "prune ..:make --input 2x3x8x8",
    "a module of nothing": "prune :make --input 2x3x8x8",
    "a function of nothing": "prune my_network: --input 2x3x8x8",
    "a model of a long name": "summary " + "a" * 300,
    "a folder that is no program": "summary folder",
    "remarks in no folder": "run my_network:make dead-code --input 2x3x8x8 --remarks nodir/r",
    "a predicate that raises": "run my_network:make dead-code --input 2x3x8x8 --bisect --check raising:f",
    "a pipeline that is deep": "run my_network:make " + "repeat(" * 2000 + " --input 2x3x8x8",
    "a plan that is no text": "verify {model} --plan bin.json",
    "a plan that is a folder": "verify {model} --plan folder",
    "a plan that is not there": "verify {model} --plan none.json",
    "a reproducer that is a file": "replay afile",
    "a reproducer of a long name": "replay " + "a" * 300,
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_and_exits_with_2(run: Run, case: str) -> None:
    for name, text in {
        "failing.py": "import sys\ndef boom(): raise RuntimeError('boom')\ndef leaves(): sys.exit(0)\n",
        "raising.py": "raise RuntimeError('boom')\n",
        "broken.py": "def (\n",
        "afile": "mine",
    }.items():
        Path(name).write_text(text)
    Path("folder").mkdir()
    Path("folder/mine").write_text("mine")
    Path("dangling").symlink_to("nowhere")
    Path("bin.json").write_bytes(b"\xff\xfe")
    code, _, err = run(*WRONG[case].replace("{model}", " ".join(MODEL)).split())
    assert code == 2
    assert err
    assert "Traceback" not in err
