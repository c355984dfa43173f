"""What a stranger may put into a saved directory: it runs nothing, and the error names the file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import FxpruneError, LoadError, OptionError, PlanError
from fxprune.graph.editor import Editor
from fxprune.graph.gate import Gate
from fxprune.pipeline.remarks import read_remarks
from fxprune.report import Report

MEMBERS = (
    "manifest.json",
    "graph.json",
    "program.json",
    "weights.safetensors",
    "inputs.safetensors",
)
HARMLESS = ("plan.json", "report.json")  # fp.load does not read them
Change = Callable[[Any], object]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("wave", torch.ones(6, dtype=torch.complex128))

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor | None = None) -> dict[str, Any]:
        n = x.shape[0]
        y = self.a(x).view(n * 6).view(-1, 6).relu() * self.wave.real.float()
        y = torch.cond(y.sum() > 0, lambda z: z.sin(), lambda z: z.cos(), (y,))
        return {"y": self.b(y if mask is None else y * mask)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("saved") / "net"
    program = fp.capture(Net().eval(), torch.randn(2, 4), {"mask": torch.ones(2, 6)})
    editor = Editor(program)
    (relu,) = (n for n in editor.nodes if n.name == "relu")
    editor.add_leaf("a.gate", Gate(6))
    gate = editor.call_leaf("a.gate", (relu, 1), before=relu.next)
    relu.replace_all_uses_with(gate, delete_user_cb=lambda user: user is not gate)
    fp.save(editor.finish(), target)
    return target


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "net"))


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def sign(directory: Path) -> None:
    """Lets the manifest agree with the files, as an attacker would."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        data = (directory / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][name] = {"bytes": len(data), "sha256": digest}
    path.write_text(json.dumps(manifest))


def refused(directory: Path, name: str) -> None:
    with pytest.raises(LoadError) as caught:
        fp.load(directory)
    assert name in str(caught.value)


def put(directory: Path, name: str, data: bytes) -> None:
    (directory / name).write_bytes(data)
    if name != "manifest.json":
        sign(directory)


def pickled(flag: Path) -> dict[str, bytes]:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(flag),)

    zipped = io.BytesIO()
    torch.save(Evil(), zipped)
    return {"pickle": pickle.dumps(Evil()), "torch": zipped.getvalue()}


@pytest.mark.parametrize("kind", ["pickle", "torch"])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_pickle_in_place_of_a_file_is_not_read(
    saved: Path, flag: Path, name: str, kind: str
) -> None:
    put(saved, name, pickled(flag)[kind])
    refused(saved, name)
    assert not flag.exists()


BYTES = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "closed and deep": b"[" * 500 + b"]" * 500,
    "a list": b"[]",
    "null": b"null",
    "a number of many digits": b"9" * 10_000,
    "not a number": b"NaN",
    "too large a number": b"1e999",
    "half a character": b'"\\ud800"',
    "a key twice": b'{"format": 1, "format": 2}',
}


@pytest.mark.parametrize("case", BYTES)
@pytest.mark.parametrize("name", MEMBERS)
def test_other_bytes_in_place_of_a_file_are_refused(saved: Path, name: str, case: str) -> None:
    put(saved, name, BYTES[case])
    refused(saved, name)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_truncated_file_is_refused(saved: Path, name: str) -> None:
    put(saved, name, (saved / name).read_bytes()[:-9])
    refused(saved, name)


@pytest.mark.parametrize("name", [m for m in MEMBERS if m.endswith("json")])
def test_more_bytes_than_any_file_has_are_not_read(
    saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.files.document.LARGEST", 100_000)
    put(saved, name, b'["' + b"x" * 100_000 + b'"]')
    refused(saved, f"{name} is too large")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_link_in_place_of_a_file_is_refused(saved: Path, name: str, tmp_path: Path) -> None:
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    refused(saved, name)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_pipe_in_place_of_a_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)
    refused(saved, name)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**12]}},
        {"x": {"dtype": "EVIL", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {},
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "inputs.safetensors"])
def test_a_tensor_file_that_lies_is_refused(saved: Path, name: str, header: Any) -> None:
    text = json.dumps(header).encode()
    put(saved, name, struct.pack("<Q", len(text)) + text + bytes(8 if header else 0))
    with pytest.raises(LoadError):
        fp.load(saved)


def entry(data: Any, op: str) -> Any:
    return next(n for n in data["nodes"] if n["op"] == op)


def call(data: Any, target: str) -> Any:
    return next(n for n in data["nodes"] if n["target"] == target)


def value(data: Any) -> Any:
    return entry(data, "placeholder")["value"]["tensor"]


def symbol(data: Any) -> Any:
    return next(iter(data["symbols"].values()))


def renamed(data: Any, name: str) -> None:
    entry(data, "placeholder").update(name=name, target=name)


CODE = "__import__('os').mkdir('ran')"
MANIFESTS: dict[str, Change] = {
    "nothing listed": lambda d: d.update(files={}),
    "one not listed": lambda d: d["files"].pop("weights.safetensors"),
    "a path up": lambda d: d["files"].update({"../x": d["files"]["graph.json"]}),
    "a path from the root": lambda d: d["files"].update({"/etc/passwd": d["files"]["graph.json"]}),
    "another file": lambda d: d["files"].update({"evil.py": d["files"]["graph.json"]}),
    "bytes are text": lambda d: d["files"]["graph.json"].update(bytes="x"),
    "bytes are many": lambda d: d["files"]["graph.json"].update(bytes=10**30),
    "no digest": lambda d: d["files"]["graph.json"].pop("sha256"),
    "a digest of a number": lambda d: d["files"]["graph.json"].update(sha256=5),
    "files are a list": lambda d: d.update(files=[1]),
    "a format that is a list": lambda d: d.update(format=[1]),
    "an older version": lambda d: d.update(version=3),
    "a version that is true": lambda d: d.update(version=True),
    "another key": lambda d: d.update(trust=True),
}
GRAPHS: dict[str, Change] = {
    **{
        f"calls {name}": lambda d, name=name: entry(d, "call_function").update(target=name)  # type: ignore[misc]
        for name in (
            *("os.system", "os:system", "builtins.eval", "builtins.exec", "builtins.__import__"),
            *("operator.methodcaller", "operator.attrgetter", "operator.call", "subprocess.Popen"),
            *("aten.__class__", "aten.add.__class__", "aten.add.default.__class__", "aten.add"),
            *(
                "aten.from_file.default",
                "aten.save.default",
                "prim.Print.default",
                "loaded_libraries",
            ),
            *("load_library", "import_module", "torch.load", "torch.hub.load", "math.__loader__"),
            *(
                "inductor.accumulate_grad_.default",
                "higher_order.call_torchbind",
                "higher_order.print",
            ),
            *("no_such_library.f.default", "", ".", "..", "aten..default", CODE),
        )
    },
    **{
        f"a node named {name}": lambda d, name=name: renamed(d, name)  # type: ignore[misc]
        for name in (
            *("x)\n    " + CODE + "\n    (", "x=" + CODE, "class", "__class__", "torch", "1x", ""),
            *("x;y", "\uff58", "print"),
        )
    },
    "an input named by code": lambda d: d["nested"]["names"].__setitem__(0, f"x={CODE}"),
    "a keyword named by code": lambda d: d["nested"]["inputs"]["tuple"][1]["dict"][0].__setitem__(
        0, f"m':{CODE},'"
    ),
    "an argument named by code": lambda d: entry(d, "call_function").update(
        kwargs={f"a={CODE}": 1}
    ),
    "a word for a tensor": lambda d: call(d, "aten.linear.default")["args"].__setitem__(2, "s0"),
    "an argument too many": lambda d: call(d, "aten.relu.default")["args"].append(1),
    "an argument too few": lambda d: call(d, "aten.relu.default")["args"].clear(),
    "an argument that is none": lambda d: call(d, "aten.relu.default").update(kwargs={"x": 1}),
    "a value of code": lambda d: entry(d, "call_function").update(args=[{"eval": CODE}]),
    "two kinds in one": lambda d: entry(d, "call_function").update(
        args=[{"node": "x", "float": "inf"}]
    ),
    "a method": lambda d: entry(d, "call_function").update(op="call_method", target="__class__"),
    "an attribute of a module": lambda d: entry(d, "get_attr").update(target="__class__.__init__"),
    "a method of a tensor": lambda d: entry(d, "get_attr").update(target="a.weight.__reduce__"),
    "a function of a module": lambda d: entry(d, "get_attr").update(target="forward"),
    "a module that is no leaf": lambda d: entry(d, "call_module").update(target="a"),
    "a device of code": lambda d: value(d).update(device=CODE),
    "a device that is not": lambda d: value(d).update(device="evil"),
    "a dtype that is a function": lambda d: value(d).update(dtype="load"),
    "a dtype of dots": lambda d: value(d).update(dtype="hub.load"),
    "a size of code": lambda d: value(d)["shape"].__setitem__(0, CODE),
    "a size of a call": lambda d: value(d)["shape"].__setitem__(0, ["eval", CODE]),
    "a size of a shift": lambda d: value(d)["shape"].__setitem__(0, ["LShift", 1, 10**12]),
    "a size of a power": lambda d: value(d)["shape"].__setitem__(0, ["Pow", 10, 10**12]),
    "a size of powers": lambda d: value(d)["shape"].__setitem__(
        0, ["Pow", ["Pow", ["Pow", 9, 16], 16], 16]
    ),
    "a size over zero": lambda d: value(d)["shape"].__setitem__(0, ["FloorDiv", 1, 0]),
    "a size of nothing": lambda d: value(d)["shape"].__setitem__(0, []),
    "a size without operands": lambda d: value(d)["shape"].__setitem__(0, ["Pow"]),
    "a size of many terms": lambda d: value(d)["shape"].__setitem__(0, ["Add", *range(1000)]),
    "a size of 10^30": lambda d: value(d)["shape"].__setitem__(0, 10**30),
    "a negative size": lambda d: value(d)["shape"].__setitem__(1, -1),
    "a size that is true": lambda d: value(d)["shape"].__setitem__(1, True),
    "a size that is no number": lambda d: value(d)["shape"].__setitem__(1, 4.5),
    "sizes that overflow": lambda d: value(d).update(shape=[2**62] * 4, stride=[2**62] * 4),
    "strides of other axes": lambda d: value(d)["stride"].append(1),
    "the size of another weight": lambda d: entry(d, "get_attr")["value"]["tensor"].update(
        shape=[1], stride=[1]
    ),
    "a symbol named by code": lambda d: d["symbols"].update({CODE: symbol(d)}),
    "a symbol of 10^30": lambda d: symbol(d).update(hint=10**30),
    "a symbol below its bound": lambda d: symbol(d).update(hint=2, low=5),
    "a symbol of text": lambda d: symbol(d).update(hint="2"),
    "a class that nobody has": lambda d: d["nested"].update(
        outputs={"registered": {"name": "os.system", "context": None, "items": [None]}}
    ),
    "a class of another module": lambda d: d["nested"].update(
        outputs={"registered": {"name": "evilmod.L", "context": None, "items": [None]}}
    ),
    "fields of code": lambda d: d["nested"].update(
        outputs={"namedtuple": {"name": "N", "fields": [CODE], "items": [None]}}
    ),
    "a tuple named by code": lambda d: d["nested"].update(
        outputs={"namedtuple": {"name": CODE, "fields": ["a"], "items": [None]}}
    ),
    "a private field": lambda d: d["nested"].update(
        outputs={"namedtuple": {"name": "N", "fields": ["_make"], "items": [None]}}
    ),
    "a default of code": lambda d: d["nested"].update(
        outputs={"defaultdict": {"factory": "eval", "items": []}}
    ),
    "nesting that is deep": lambda d: d["nested"].update(outputs=deep(90)),
    "inputs that are fewer": lambda d: d["nested"]["inputs"]["tuple"][0]["tuple"].pop(),
    "a node twice": lambda d: d["nodes"].insert(0, d["nodes"][0]),
    "a node after the output": lambda d: d["nodes"].append(d["nodes"][0]),
    "no output": lambda d: d["nodes"].pop(),
    "no nodes": lambda d: d.update(nodes=[]),
    "a node before it is there": lambda d: d["nodes"].reverse(),
    "a stack that is not": lambda d: entry(d, "call_function").update(stack=10**6),
    "a mode of one": lambda d: entry(d, "call_function").update(mode=[1]),
    "a branch named by dots": lambda d: d["graphs"].update({"a.weight": []}),
    "a branch of a method": lambda d: d["graphs"].update({"forward": [d["nodes"][0]]}),
    "a branch of nothing": lambda d: d["graphs"].update({"": []}),
}
FACTS: dict[str, Change] = {
    "a leaf of any module": lambda d: leaf(d).update({"class": "evilmod:L"}),
    "a leaf of the library": lambda d: leaf(d).update({"class": "subprocess:Popen"}),
    "a leaf of torch": lambda d: leaf(d).update({"class": "torch.nn.modules.linear:Linear"}),
    "an attribute of magic": lambda d: leaf(d)["attributes"].update(__class__="x"),
    "an attribute over a method": lambda d: leaf(d)["attributes"].update(forward="x"),
    "an attribute of torch's": lambda d: leaf(d)["attributes"].update(_modules={"dict": []}),
    "an attribute of code": lambda d: leaf(d)["attributes"].update(kind={"eval": CODE}),
    "a leaf where no module is": lambda d: d["leaves"].update({"no.where": leaf(d)}),
    "training is text": lambda d: d.update(training="yes"),
    "a free batch is a number": lambda d: d.update(free_batch=1),
    "a name that is a list": lambda d: d.update(name=[1]),
    "remarks of another kind": lambda d: d.update(remarks=[{"kind": "evil"}]),
    "a key too many": lambda d: d.update(trust=True),
    "tensors that are missing": lambda d: d["tensors"].pop(),
    "a tensor twice": lambda d: d["tensors"].append(d["tensors"][0]),
    "a tensor named by magic": lambda d: d["tensors"][0].update(name="__class__"),
    "a tensor named by nothing": lambda d: d["tensors"][0].update(name=""),
    "a tensor in a method": lambda d: d["tensors"][0].update(name="forward.x"),
    "a tensor that is itself": lambda d: d["tensors"].insert(
        0, {"name": "x", "persistent": True, "same_as": "x"}
    ),
    "strides that overlap": lambda d: d["tensors"][0]["stored"].update(stride=[0, 0]),
    "strides of 10^18": lambda d: d["tensors"][0]["stored"].update(stride=[10**18, 1]),
    "another type": lambda d: wide(d).update(dtype="load"),
    "another length": lambda d: wide(d).update(shape=[2**40]),
    "a length of 10^30": lambda d: wide(d).update(shape=[10**30]),
    "inputs of code": lambda d: d["inputs"]["values"].__setitem__(0, {"eval": CODE}),
    "inputs that are fewer": lambda d: d["inputs"]["values"].pop(),
    "an input that is not": lambda d: d["inputs"]["values"][0]["tensor"].update(name="9"),
    "inputs that are no tuple": lambda d: d["inputs"].update(nested={"list": [None, None]}),
}


def deep(levels: int) -> Any:
    found: Any = None
    for _ in range(levels):
        found = {"list": [found]}
    return found


def leaf(data: Any) -> Any:
    return next(iter(data["leaves"].values()))


def wide(data: Any) -> Any:
    """What is said of the tensor that is stored as bytes."""
    return next(t["stored"] for t in data["tensors"] if "dtype" in t["stored"])


CASES = [
    (name, case)
    for name, cases in (
        ("manifest.json", MANIFESTS),
        ("graph.json", GRAPHS),
        ("program.json", FACTS),
    )
    for case in cases
]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_value_that_is_none_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evilmod.py").write_text("import os; os.mkdir('ran')\nclass L: pass\n")
    data = json.loads((saved / name).read_text())
    {"manifest.json": MANIFESTS, "graph.json": GRAPHS, "program.json": FACTS}[name][case](data)
    put(saved, name, json.dumps(data).encode())
    with pytest.raises(LoadError) as caught:
        fp.load(saved)
    assert str(saved) in caught.value.where
    assert not (tmp_path / "ran").exists()
    assert "evilmod" not in sys.modules


def spoiled(data: Any, way: tuple[Any, ...], bad: Any) -> Any:
    """The data with another value at the end of a way."""
    if not way:
        return bad
    copied = data.copy()
    copied[way[0]] = spoiled(data[way[0]], way[1:], bad)
    return copied


def ways(data: Any) -> list[tuple[Any, ...]]:
    """One way to each kind of place: the first entry of each list stands for all."""
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data[:1])
        if isinstance(data, list)
        else ()
    )
    return [(), *((key, *rest) for key, value in inner for rest in ways(value))]


BAD: list[Any] = [
    None,
    True,
    -1,
    10**30,
    1.5,
    "",
    CODE,
    [],
    {},
    [[]],
    {"eval": CODE},
    {"node": "x"},
]


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("name", ["manifest.json", "graph.json", "program.json"])
def test_any_value_at_any_place_is_loaded_or_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bad: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    data = json.loads((saved / name).read_text())
    for way in ways(data):
        put(saved, name, json.dumps(spoiled(data, way, bad)).encode())
        try:
            fp.load(saved)
        except LoadError as error:
            assert str(saved) in str(error), way  # noqa: PT017 (it may load as well)
    assert not (tmp_path / "ran").exists()


PLAN = {
    "format": "fxprune-plan",
    "version": 1,
    "fingerprint": "x",
    "tensors": {"a.weight": {"0": {"size": 6, "removed": "1"}}},
    "edits": [{"edit": "rescale", "node": "a", "numerator": 1, "denominator": 2}],
}
ROW = {
    "epoch": 0,
    "loss": 1.0,
    "accuracy": None,
    "parameters": 1,
    "macs": 1,
    "layers": 1,
    "units": 1,
}
HISTORY = {**ROW, "steps": 1, "seconds_per_step": 0.1, "extra": {"a": 1.0}}
REMARK = {"kind": "missed", "code": "a.b", "where": "c", "what": "d", "why": "", "do": ""}
FILES: dict[str, tuple[Any, Callable[[Path], object], type[FxpruneError]]] = {
    "plan": (PLAN, fp.Plan.load, PlanError),
    "history": (HISTORY, lambda path: fp.training.History(path), OptionError),
    "remarks": (REMARK, read_remarks, OptionError),
}


@pytest.mark.filterwarnings("ignore:.*the end of the line is missing")  # of a history
@pytest.mark.parametrize("kind", FILES)
def test_other_files_of_fxprune_are_checked_alike(tmp_path: Path, flag: Path, kind: str) -> None:
    data, read, error = FILES[kind]
    path = tmp_path / kind
    path.write_text(json.dumps(data) + "\n")
    read(path)
    bad = [json.dumps(spoiled(data, w, b)).encode() for w in ways(data) for b in BAD]
    for content in (*pickled(flag).values(), *BYTES.values(), *bad):
        path.write_bytes(content)
        try:
            read(path)
        except error as raised:
            assert str(path) in str(raised)  # noqa: PT017 (it may load as well)
    assert not flag.exists()


def test_a_plan_of_very_many_positions_is_refused(tmp_path: Path) -> None:
    for size, removed in ((10**12, "0"), (6, "0-999999999999"), (2**27, "0"), (10**30, "0")):
        tensors = {f"{n}": {"0": {"size": size, "removed": removed}} for n in range(3)}
        (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "tensors": tensors}))
        with pytest.raises(PlanError, match=r"plan\.json"):
            fp.Plan.load(tmp_path / "plan.json")


def test_a_report_that_is_none_is_refused(folder: Path) -> None:
    small = fp.prune(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval(), torch.randn(2, 4))
    data = json.loads(json.dumps(small.report.to_json()))
    assert Report.from_json(data).to_json() == data
    for way in ways(data):
        for bad in BAD:
            try:
                Report.from_json(spoiled(data, way, bad))
            except LoadError:
                continue


def test_a_model_pruned_in_parts_is_checked_alike(tmp_path: Path, flag: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    partial = fp.capture_partial(model, (torch.randn(2, 4),))
    fp.save(fp.prune(partial, keep=0.5), tmp_path / "net")
    partial.load(tmp_path / "net")
    for name in ("manifest.json", "parts.json", "plan.json", "weights.safetensors"):
        for data in (*pickled(flag).values(), *BYTES.values()):
            saved = Path(shutil.copytree(tmp_path / "net", tmp_path / "copy"))
            put(saved, name, data)
            with pytest.raises(FxpruneError, match=name.replace(".", r"\.")):
                partial.load(saved)
            shutil.rmtree(saved)
    assert not flag.exists()
