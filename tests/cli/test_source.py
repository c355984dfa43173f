"""MODEL as a user has it: a class in a file, its arguments, its weights in a file; and a directory of its class."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import fxprune as fp

FILE = """
import torch
from torch import nn
from beside import WIDTH
class Net(nn.Module):
    def __init__(self, width=WIDTH, classes=3):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, classes)
    def forward(self, x):
        return self.three(self.two(self.one(x).relu()).relu())
class Tied(Net):
    def __init__(self):
        super().__init__(4, 4)
        self.two.weight = self.one.weight
def make():
    return Net()
there = Net()
"""
Run = Callable[..., tuple[int, str, str]]
NET = ("net_in_file.py:Net", "--input", "2x4")


@pytest.fixture
def run(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    (tmp_path / "net_in_file.py").write_text(FILE)
    return command


def parameters(out: str) -> int:
    return int(json.loads(out)["total"]["parameters"])


def net(name: str = "Net", *args: Any) -> nn.Module:
    torch.manual_seed(5)
    model: nn.Module = getattr(import_module("net_in_file"), name)(*args)
    return model.eval()


def test_a_class_in_a_file_finds_its_neighbours(run: Run) -> None:
    code, out, _ = run("summary", *NET, "--json")
    assert (code, parameters(out)) == (0, 40 + 72 + 27)


@pytest.mark.parametrize("args", ['{"width": 6, "classes": 2}', "[6, 2]"])
def test_arguments_are_keywords_or_a_list(run: Run, args: str) -> None:
    code, out, _ = run("summary", *NET, "--args", args, "--json")
    assert (code, parameters(out)) == (0, 30 + 42 + 14)


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"fxprune {fp.__version__}\n", "")


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + k: x for k, x in state.items()}


WEIGHTS: dict[str, Callable[[nn.Module, str], object]] = {
    "safetensors": lambda m, f: save_file(m.state_dict(), f"{f}.safetensors"),
    "a state": lambda m, f: torch.save(m.state_dict(), f"{f}.pt"),
    "a wrapper": lambda m, f: torch.save({"state_dict": m.state_dict(), "epoch": 3}, f"{f}.pt"),
    "two wrappers": lambda m, f: torch.save(
        {"model": {"state_dict": m.state_dict()}, "lr": 0.1}, f"{f}.pt"
    ),
    "several processes": lambda m, f: torch.save(prefixed(m.state_dict(), "module."), f"{f}.pt"),
    "compiled in several processes": lambda m, f: torch.save(
        {"model": prefixed(m.state_dict(), "module._orig_mod.")}, f"{f}.pt"
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_are_loaded(run: Run, case: str) -> None:
    run("summary", *NET)  # finds the module
    model = net()
    WEIGHTS[case](model, "w")
    (file,) = (p.name for p in Path().glob("w.*"))
    code, _, err = run("run", NET[0], "dead-code", *NET[1:], "--weights", file, "--out", "small")
    assert (code, err) == (0, "")
    x = torch.randn(2, 4)
    torch.testing.assert_close(fp.load("small")(x), model(x))


def test_weights_of_a_tied_model_stand_under_one_name(run: Run) -> None:
    run("summary", *NET)
    model = net("Tied")
    save_model(model, "w.safetensors")
    words = ("net_in_file.py:Tied", "dead-code", *NET[1:], "--weights", "w.safetensors")
    assert run("run", *words, "--out", "small")[0] == 0
    x = torch.randn(2, 4)
    torch.testing.assert_close(fp.load("small")(x), model(x))


class Evil:
    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("ran"),)


BAD_WEIGHTS: dict[str, tuple[Callable[[], object], str]] = {
    "no file": (lambda: None, "there is no file w.pt"),
    "a pickle of code": (lambda: torch.save(Evil(), "w.pt"), "cannot read w.pt"),
    "no pickle": (lambda: Path("w.pt").write_text("mine"), "cannot read w.pt"),
    "a list": (lambda: torch.save([torch.zeros(2)], "w.pt"), "holds no state of a model"),
    "a state of an optimizer": (
        lambda: torch.save({"optimizer": {}, "step": 3}, "w.pt"),
        "its keys are optimizer, step",
    ),
    "missing and unexpected": (
        lambda: torch.save({"one.weight": torch.zeros(8, 4), "x": torch.zeros(1)}, "w.pt"),
        "5 are missing: one.bias, two.weight, two.bias, three.weight and 1 more; 1 are unexpected: x",
    ),
    "another shape": (
        lambda: torch.save({**net().state_dict(), "one.bias": torch.zeros(9)}, "w.pt"),
        "one.bias is (9,) in the file and (8,) in the model",
    ),
    "a prefix that is none": (
        lambda: torch.save(prefixed(net().state_dict(), "encoder."), "w.pt"),
        "unexpected: encoder.one.weight",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_named(run: Run, case: str) -> None:
    run("summary", *NET)
    make, says = BAD_WEIGHTS[case]
    make()
    code, out, err = run("prune", *NET, "--weights", "w.pt", "--out", "small")
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert not Path("small").exists()
    assert not Path("ran").exists()


def test_random_weights_are_a_warning_where_they_matter(run: Run) -> None:
    for words, warned in (
        (("prune", *NET), True),
        (("layers", *NET), False),
        (("summary", *NET), False),
        (("prune", "net_in_file:make", *NET[1:]), False),  # it may load weights itself
        (("prune", "net_in_file.py:there", *NET[1:]), False),
    ):
        code, _, err = run(*words)
        assert (code, "random weights" in err) == (0, warned), words


def test_out_is_not_overwritten_without_force(run: Run) -> None:
    words = ("prune", *NET, "--no-verify", "--out", "small")
    assert run(*words)[0] == 0
    before = Path("small/manifest.json").read_bytes()
    code, _, err = run(*words, "--keep", "macs=0.9")
    assert code == 2
    assert "--force" in err
    assert Path("small/manifest.json").read_bytes() == before
    assert run(*words, "--keep", "macs=0.9", "--force")[0] == 0
    assert Path("small/manifest.json").read_bytes() != before


def test_the_class_is_written_and_read_again(run: Run) -> None:
    words = ("prune", *NET, "--args", '{"width": 12}', "--class", "--out", "own")
    code, out, _ = run(*words, "--json")
    assert code == 0
    left = json.loads(out)["after"]["total"]["parameters"]
    facts = json.loads(Path("own/model.json").read_text())
    assert facts["build"]["callable"] == "net_in_file:Net"
    model = fp.load_model("own", build=import_module("net_in_file").Net)
    assert type(model) is import_module("net_in_file").Net
    assert sum(p.numel() for p in model.parameters()) == left
    assert parameters(run("summary", "own", "--trust", "--json")[1]) == left
    code, _, err = run("summary", "own")
    assert code == 2
    assert "--trust" in err
    again = ("prune", "own", "--trust", "--keep", "params=0.8", "--class", "--out", "own2")
    assert run(*again)[0] == 0
    second = fp.load_model("own2", trust="net_in_file")
    assert sum(p.numel() for p in second.parameters()) < left


WRONG = {
    "a file that is not there": "summary none.py:Net --input 2x4",
    "a class that the file has not": "summary net_in_file.py:Nets --input 2x4",
    "a file that raises": "summary raising.py:Net --input 2x4",
    "a file alone": "summary net_in_file.py --input 2x4",
    "arguments that are no JSON": "summary net_in_file.py:Net --input 2x4 --args {",
    "arguments that are a number": "summary net_in_file.py:Net --input 2x4 --args 3",
    "arguments of other names": 'summary net_in_file.py:Net --input 2x4 --args {"size":3}',
    "arguments that are no names": 'summary net_in_file.py:Net --input 2x4 --args {"a-b":3}',
    "arguments of a module": "summary net_in_file.py:there --input 2x4 --args [3]",
    "a list for torchvision": "summary torchvision:resnet18 --args [3]",
    "DEFAULT weights of a file": "prune net_in_file.py:Net --input 2x4 --weights DEFAULT",
    "weights of a folder": "prune net_in_file.py:Net --input 2x4 --weights .",
    "weights of a saved program": "summary saved --weights w.pt",
    "arguments of a saved program": "summary saved --args [3]",
    "class without out": "prune net_in_file.py:Net --input 2x4 --class",
    "class of a saved program": "prune saved --class --out own",
    "class in parts": "prune net_in_file.py:Net --input 2x4 --partial --class --out own",
    "blocks of nothing": "layers net_in_file.py:Net --input 2x4 --delete one",
    "more blocks than there are": "layers net_in_file.py:Net --input 2x4 --last 1",
    "two ways to name blocks": "layers net_in_file.py:Net --input 2x4 --last 1 --delete x",
    "fewer blocks than none": "layers net_in_file.py:Net --input 2x4 --last -1",
    "nothing to write": "layers net_in_file.py:Net --input 2x4 --out own",
    "a format that is none": "export saved --format tflite",
    "an export in no folder": "export saved --format pt2 --out none/x.pt2",
    "an export of another ending": "export saved --format pt2 --out x.onnx",
    "an export over a file": "export saved --format pt2 --out there.pt2",
    "an export over a folder": "export saved --format pt2 --out folder.pt2",
    "an export of nothing": "export nothing --format pt2",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_and_exits_with_2(run: Run, case: str) -> None:
    Path("raising.py").write_text("raise RuntimeError('boom')\n")
    Path("there.pt2").write_text("mine")
    Path("folder.pt2").mkdir()
    if "saved" in WRONG[case]:
        fp.save(fp.capture(nn.Linear(4, 2).eval(), torch.randn(2, 4)), "saved")
    before = sorted(Path().rglob("*.*"))
    code, out, err = run(*WRONG[case].split())
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err
    assert Path("there.pt2").read_text() == "mine"
    assert [p for p in sorted(Path().rglob("*.*")) if p.suffix != ".pyc"] == before
