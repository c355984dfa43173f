"""What a stranger may put into the directory of a model: it imports and runs nothing, and is a LoadError."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fxprune as fp
from fxprune.errors import LoadError, OptionError

Change = Callable[[Any], object]
MEMBERS = ("manifest.json", "model.json", "weights.safetensors", "plan.json")


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x)


class Net(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(Inner(), nn.ReLU())
        self.head = nn.Linear(6, classes)
        self.width, self.file = 6, "none"
        self.register_buffer("wave", torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).view(-1, self.width) * self.wave)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("saved") / "m"
    model = Net().eval()
    plan = fp.plan(fp.capture(model, torch.randn(2, 4)), {"head.weight": (1, [0, 2])})
    fp.save(fp.write_back(model, plan), target, plan=plan, args={"classes": 2})
    return target


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "m"))


def sign(directory: Path) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        data = (directory / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


def refused(directory: Path, **options: Any) -> LoadError:
    with pytest.raises(LoadError) as caught:
        fp.load_model(directory, **options)
    assert str(caught.value)
    return caught.value


def change(directory: Path, name: str, how: Change) -> None:
    data = json.loads((directory / name).read_text())
    how(data)
    (directory / name).write_text(json.dumps(data))
    if name != "manifest.json":
        sign(directory)


BYTES = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "deep lists": b"[" * 200_000,
    "a list": b"[]",
    "not a number": b"NaN",
    "a key twice": b'{"name": 1, "name": 2}',
}


@pytest.mark.parametrize("case", [*BYTES, "pickle"])
@pytest.mark.parametrize("name", MEMBERS)
def test_other_bytes_are_refused(saved: Path, name: str, case: str) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(saved / "ran"),)

    data = pickle.dumps(Evil()) if case == "pickle" else BYTES[case]
    (saved / name).write_bytes(data)
    if name != "manifest.json":
        sign(saved)
    refused(saved, trust=True)
    assert not (saved / "ran").exists()


@pytest.mark.parametrize("name", [m for m in MEMBERS if m != "plan.json"])
def test_a_missing_file_and_a_link_are_refused(saved: Path, name: str, tmp_path: Path) -> None:
    (saved / name).rename(tmp_path / "elsewhere")
    refused(saved, trust=True)
    (saved / name).symlink_to(tmp_path / "elsewhere")
    refused(saved, trust=True)


def test_a_path_in_the_manifest_is_refused(saved: Path) -> None:
    change(saved, "manifest.json", lambda d: d["files"].update({"../x": d["files"]["model.json"]}))
    refused(saved, trust=True)


def mark(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a folder when it is imported, and when its function is called."""
    flag = directory / "ran"
    text = f"import os\nos.mkdir({str(flag)!r})\ndef make(*a, **k): os.mkdir({str(flag) + '2'!r})\n"
    (directory / "marking.py").write_text(text)
    monkeypatch.syspath_prepend(str(directory))
    return flag


@pytest.mark.parametrize("name", ["marking:make", "os:system", "subprocess:Popen", "builtins:eval"])
@pytest.mark.parametrize("place", ["callable", "config"])
def test_nothing_is_imported_or_called_that_nobody_allowed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    flag = mark(tmp_path, monkeypatch)

    def evil(d: Any) -> None:
        if place == "callable":
            d["build"].update(callable=name, args=[f"mkdir {flag}"], kwargs={})
        else:
            d["build"]["args"] = [{"config": {"class": name, "values": {"dict": []}}}]

    change(saved, "model.json", evil)
    for trust in ((), False, "torch", ("marking_other", "mark", "fxprune"), (__name__,)):
        error = refused(saved, trust=trust)
        assert "marking" not in sys.modules
        assert place == "config" or name in str(error)
    if place == "config":
        assert name in str(refused(saved, build=Net))
        assert name in str(refused(saved, trust=__name__))
    assert not flag.exists()
    fp.load_model(saved, Net())  # nothing of the file is built
    assert not flag.exists()


def test_trust_of_a_module_is_none_of_what_it_imports(saved: Path) -> None:
    change(saved, "model.json", lambda d: d["build"].update(callable=f"{__name__}:shutil.rmtree"))
    error = refused(saved, trust=__name__)
    assert "which trust does not name" in str(error)


PATHS = (
    *("os.system", "", ":", "a:b:c", "os:", ":system", "os:system()", "os:a b", "../x:f"),
    *(f"{__name__}:Net.__init__.__globals__", f"{__name__}:Net.__class__", f"{__name__}:nothing"),
    *(f"{__name__}:MEMBERS", "no.such.module:f", "\x00:f"),
)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_leads_to_no_class_is_refused(saved: Path, name: str) -> None:
    change(saved, "model.json", lambda d: d["build"].update(callable=name))
    refused(saved, trust=True)


def row(**other: Any) -> dict[str, Any]:
    return {"module": "", "trail": ["width"], "value": 4, **other}


FACTS: dict[str, Change] = {
    "a key too many": lambda d: d.update(trust=True),
    "no build": lambda d: d.pop("build"),
    "a build of null": lambda d: d.update(build=None),
    "arguments of another name": lambda d: d["build"].update(kwargs={"size": 3}),
    "arguments of another size": lambda d: d["build"].update(kwargs={"classes": 3}),
    "an argument of code": lambda d: d["build"].update(kwargs={"classes": {"eval": "1"}}),
    "an argument that is huge": lambda d: d["build"].update(kwargs={"classes": 10**15}),
    "an argument that is no size": lambda d: d["build"].update(kwargs={"classes": "x"}),
    "a mode of text": lambda d: d.update(training="yes"),
    "modes of no module": lambda d: d.update(modes=["nothing"]),
    "modes of a number": lambda d: d.update(modes=[1]),
    "no cut": lambda d: d.update(cut={}),
    "a cut of another size": lambda d: d["cut"].update({"head.weight": [2, 7]}),
    "a cut of other axes": lambda d: d["cut"].update({"head.weight": [2]}),
    "a cut of a negative size": lambda d: d["cut"].update({"head.weight": [2, -6]}),
    "a cut of nothing": lambda d: d["cut"].update({"nothing": [2]}),
    "a cut that is a list": lambda d: d.update(cut=[]),
    "a tensor less": lambda d: d["tensors"].pop(),
    "a tensor twice": lambda d: d["tensors"].append(d["tensors"][0]),
    "a tensor of another name": lambda d: d["tensors"][0].update(name="evil"),
    "a tensor in a method": lambda d: d["tensors"][0].update(name="forward"),
    "a tensor of magic": lambda d: d["tensors"][0].update(name="__class__"),
    "a tensor named by a path": lambda d: d["tensors"][0].update(name="../x"),
    "a parameter as a buffer": lambda d: d["tensors"][-1].update(
        persistent=d["tensors"][-1].pop("requires_grad", True)
    ),
    "a number in a text": lambda d: d["numbers"].append(row(trail=["file"])),
    "a text in a number": lambda d: d["numbers"].append(row(value="x")),
    "a number over a method": lambda d: d["numbers"].append(row(trail=["forward"])),
    "a number over a class": lambda d: d["numbers"].append(row(trail=["__class__"])),
    "a number in torch's own": lambda d: d["numbers"].append(row(trail=["_modules", "head"])),
    "a number of nothing": lambda d: d["numbers"].append(row(trail=["evil"])),
    "a number of no module": lambda d: d["numbers"].append(row(module="nothing")),
    "a number without a way": lambda d: d["numbers"].append(row(trail=[])),
    "a way of lists": lambda d: d["numbers"].append(row(trail=[["width"]])),
    "a number of code": lambda d: d["numbers"].append(row(value={"eval": "1"})),
    "a module that is gone": lambda d: d["changes"].append({"module": "head", "class": None}),
    "a module of any class": lambda d: d["changes"].append(
        {"module": "body.1", "class": "os:system"}
    ),
    "the model replaced": lambda d: d["changes"].append({"module": "", "class": "Identity"}),
    "no such module": lambda d: d["changes"].append({"module": "a.b", "class": "Identity"}),
    "children that are not": lambda d: d["changes"].append({"module": "body", "children": ["9"]}),
    "children twice": lambda d: d["changes"].append({"module": "body", "children": ["0", "0"]}),
    "children of text": lambda d: d["changes"].append({"module": "body", "children": "0"}),
    "a change of two kinds": lambda d: d["changes"].append(
        {"module": "body", "children": ["0"], "class": "Identity"}
    ),
}


@pytest.mark.parametrize("case", FACTS)
def test_facts_that_lie_are_refused(saved: Path, case: str) -> None:
    change(saved, "model.json", FACTS[case])
    refused(saved, trust=__name__)


def test_weights_of_other_sizes_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "weights.safetensors")
    for wrong in (torch.zeros(2, 5), torch.zeros(8), torch.zeros(0, 4)):
        save_file({**tensors, "head.weight": wrong}, saved / "weights.safetensors")
        sign(saved)
        refused(saved, trust=__name__)


def test_a_plan_for_another_model_is_refused(saved: Path) -> None:
    other = Net(3).eval()
    plan = fp.plan(fp.capture(other, torch.randn(2, 4)), {"head.weight": (1, [0])})
    plan.save(saved / "plan.json")
    sign(saved)
    assert "plan.json is for another model" in str(refused(saved, trust=__name__))


def test_another_model_is_refused_and_stays(saved: Path) -> None:
    other = Net(3)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    error = refused(saved, model=other)
    assert "head" in error.where
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
    refused(saved, model=nn.Linear(2, 2))


def test_arguments_that_contradict_each_other_are_refused(saved: Path) -> None:
    for options in (
        {"model": Net(), "trust": True},
        {"model": Net(), "build": Net},
        {"model": 3},
        {"trust": (3,)},
    ):
        with pytest.raises(OptionError):
            fp.load_model(saved, **options)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.noise = nn.Linear(4, 4), torch.rand(4)
        self.tables = [torch.rand(2)]


CONSTANTS: dict[str, tuple[Change, str]] = {
    "a place that is a weight": (
        lambda rows: rows[0].update(module="lin", trail=["weight"]),
        "there is no tensor",
    ),
    "a place that is no tensor": (lambda rows: rows[0].update(trail=["forward"]), "no tensor"),
    "a method": (lambda rows: rows[0].update(trail=["tables", "append"]), "there is no tensor"),
    "a way of nothing": (lambda rows: rows[0].update(trail=[]), "is no way to a value"),
    "a way of lists": (lambda rows: rows[0].update(trail=[["noise"]]), "is no way to a value"),
    "one too few": (lambda rows: rows.pop(), "tensors that nothing names"),
    "one too many": (lambda rows: rows.append(rows[0]), "has no '2'"),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constants_that_were_altered(case: str, tmp_path: Path) -> None:
    alter, says = CONSTANTS[case]
    fp.save(Noisy(), tmp_path / "m")
    change(tmp_path / "m", "model.json", lambda facts: alter(facts["constants"]))
    assert says in str(refused(tmp_path / "m", trust=__name__))


def test_constants_without_their_file(tmp_path: Path) -> None:
    fp.save(Noisy(), tmp_path / "m")
    change(tmp_path / "m", "manifest.json", lambda m: m["files"].pop("constants.safetensors"))
    assert "there is no constants.safetensors" in str(refused(tmp_path / "m", trust=__name__))
