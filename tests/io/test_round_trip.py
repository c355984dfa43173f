"""Saved and loaded: the same numbers bit for bit, the same fingerprint, and old plans fit."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torchvision.ops import nms

import fxprune as fp
from fxprune.errors import LoadError
from fxprune.graph.mode import MODE
from fxprune.graph.program import Program, describe
from fxprune.pipeline import run_pipeline
from fxprune.plan import fingerprint

Out = collections.namedtuple("Out", "logits features")  # noqa: PYI024 (users write it so)


@dataclasses.dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor


pytree.register_dataclass(Pair, serialized_type_name="test_round_trip.Pair")


class Calls(nn.Module):
    """A network of a few layers that a function calls."""

    def __init__(self, call: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)


def conv() -> tuple[nn.Module, Any]:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 16, 5)), torch.randn(2, 3, 8, 8)


def channels_last() -> tuple[nn.Module, Any]:
    model, x = conv()
    return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.cell(x)[0])
        return out


def attention() -> tuple[nn.Module, Any]:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def yes(y: torch.Tensor) -> torch.Tensor:
            return torch.cond(y.mean() > 1, lambda z: z.sin(), lambda z: z + torch.ones(6), (y,))

        out: torch.Tensor = self.b(torch.cond(x.sum() > 0, yes, lambda y: y.cos(), (self.a(x),)))
        return out


class Dicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, pair: Any = None, *, mask: Any = None) -> dict[str, Any]:
        h = self.a(x if pair is None else x + pair["shift"][0]).relu()
        y = self.b(h if mask is None else h * mask)
        ordered = collections.OrderedDict(b=y, a=h)
        return {"y": y, "parts": [h, (y, None)], "ordered": ordered, "sum": y.sum()}


class Sizes(nn.Module):
    """Arithmetic of the batch, infinities, slices, dtypes and devices in arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        y = self.a(x).view(n * 6).view(-1, 6)
        y = y.masked_fill(y > 0.5, float("-inf")).clamp(min=-0.0, max=1e30)
        y = torch.cat((y, torch.zeros(n, 6, dtype=torch.float32, device="cpu")))[: n * 2 // 2]
        out: torch.Tensor = self.b(y.double().float()[..., :])
        return out


class Kinds(nn.Module):
    """Tensors of types that a file of tensors need not know."""

    wave: torch.Tensor
    wide: torch.Tensor
    scale: torch.Tensor
    short: torch.Tensor
    spread: torch.Tensor
    rate: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.register_buffer("wave", torch.randn(6, dtype=torch.complex64), persistent=False)
        self.register_buffer("wide", torch.randn(6, dtype=torch.complex128).conj())
        self.register_buffer("scale", torch.randn(6).to(torch.float8_e5m2))
        self.register_buffer("short", torch.ones(6, dtype=torch.uint16))
        self.register_buffer("spread", torch.randn(6, 4).t())
        self.register_buffer("rate", torch.tensor(0.5, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) * self.wave.abs() * self.rate + self.scale.float() + self.short.float()
        out: torch.Tensor = y @ self.spread.t() + self.wide.real.float().sum()
        return out


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "conv": conv,
    "channels last": channels_last,
    "lstm": lambda: (Recurrent(), torch.randn(2, 3, 4)),
    "attention": attention,
    "cond": lambda: (Branches(), torch.randn(2, 4)),
    "dicts": lambda: (
        Dicts(),
        (torch.randn(2, 4), {"shift": [torch.randn(4), 3, None]}),
    ),
    "sizes": lambda: (Sizes(), torch.randn(2, 4)),
    "kinds": lambda: (Kinds(), torch.randn(2, 4)),
    "namedtuple": lambda: (
        Calls(lambda m, x: Out(m.b(h := m.a(x).relu()), h), a=nn.Linear(4, 6), b=nn.Linear(6, 2)),
        torch.randn(2, 4),
    ),
    "dataclass": lambda: (
        Calls(lambda m, x: Pair(m.b(h := m.a(x).relu()), h), a=nn.Linear(4, 6), b=nn.Linear(6, 2)),
        torch.randn(2, 4),
    ),
    "found at run time": lambda: (
        Calls(
            lambda m, x: (m.b(m.a(x).relu()), nms(x, x[:, 0], 0.5), x[x[:, 0] > 0]),
            a=nn.Linear(4, 6),
            b=nn.Linear(6, 2),
        ),
        torch.randn(3, 4),
    ),
    "named by torch": lambda: (
        Calls(lambda m, x: m.a(x).max(1), a=nn.Linear(4, 6)),
        torch.randn(2, 4),
    ),
}


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal bit for bit, and their tensors laid out alike."""
    ones, twos = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(ones) == len(twos) and all(
        same_tensor(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(ones, twos, strict=True)
    )


def same_tensor(x: torch.Tensor, y: torch.Tensor) -> bool:
    if (x.dtype, x.shape, x.stride()) != (y.dtype, y.shape, y.stride()):
        return False
    a, b = (t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (x, y))
    return torch.equal(a, b)


def there_and_back(program: Program, tmp_path: Path) -> Program:
    fp.save(program, tmp_path / "saved")
    return fp.load(tmp_path / "saved")


def rows(program: Program) -> list[Any]:
    """Everything of the nodes that is read anywhere."""
    return [
        (
            *(n.op, n.name, str(n.target), str(n.args), str(n.kwargs), describe(n)),
            re.sub(r"Parameter\((.*)\)", r"\1", str(n.meta.get("val"))),
            n.meta.get(MODE),
        )
        for n in program.nodes
    ]


@pytest.fixture(scope="module", params=NETWORKS)
def captured(request: pytest.FixtureRequest) -> Program:
    torch.manual_seed(0)
    model, inputs = NETWORKS[request.param]()
    return fp.capture(model.eval(), inputs)


@pytest.fixture(scope="module")
def loaded(captured: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return there_and_back(captured, tmp_path_factory.mktemp("saved"))


def test_outputs_are_equal_bit_for_bit(captured: Program, loaded: Program) -> None:
    ours, theirs = (p(*p.args, **p.kwargs) for p in (captured, loaded))
    assert same(ours, theirs)
    assert type(ours).__name__ == type(theirs).__name__


def test_a_network_that_was_moved_is_saved(tmp_path: Path) -> None:
    program = fp.capture(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.randn(2, 4))
    program.module.half()
    x = torch.randn(2, 4, dtype=torch.float16)
    assert torch.equal(there_and_back(program, tmp_path).module(x), program.module(x))


def test_inputs_and_tensors_are_equal_bit_for_bit(captured: Program, loaded: Program) -> None:
    assert same((loaded.args, dict(loaded.kwargs)), (captured.args, dict(captured.kwargs)))
    assert list(captured.tensors()) == list(loaded.tensors())
    assert same(captured.tensors(), loaded.tensors())
    assert list(captured.module.state_dict()) == list(loaded.module.state_dict())


def test_nodes_values_modules_lines_and_modes_are_equal(captured: Program, loaded: Program) -> None:
    assert rows(captured) == rows(loaded)
    assert fingerprint(captured) == fingerprint(loaded)
    assert (captured.name, captured.training, captured.free_batch, captured.remarks) == (
        *(loaded.name, loaded.training, loaded.free_batch, loaded.remarks),
    )


def test_an_old_plan_shrinks_the_loaded_program(captured: Program, loaded: Program) -> None:
    groups = fp.groups(captured)
    assert str(groups) == str(fp.groups(loaded))
    if not groups:  # all is returned
        return
    plan = fp.prune(captured, keep=0.6, metric="units", verify=False).plan
    small = fp.shrink(loaded, plan)
    assert fp.verify(loaded, plan, small).ok
    assert same(small(*loaded.args), fp.shrink(captured, plan)(*captured.args))


def test_saving_again_gives_the_same_graph(loaded: Program, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        fp.save(loaded, tmp_path / name)
        loaded = fp.load(tmp_path / name)
    once, twice = ((tmp_path / n / "graph.json").read_text() for n in ("once", "twice"))
    assert once == twice


def test_a_loaded_program_trains_and_switches_modes(tmp_path: Path) -> None:
    model, x = conv()
    program = fp.capture(model.train(), x)
    loaded = there_and_back(program, tmp_path)
    for mode in (True, False):
        torch.manual_seed(1)
        ours = program.train(mode)(x)
        torch.manual_seed(1)
        assert same(loaded.train(mode)(x), ours)
    loaded(x).sum().backward()
    assert all(p.grad is not None for p in loaded.module.parameters())


def test_a_loaded_program_is_exported_and_compiled(tmp_path: Path) -> None:
    model, x = conv()
    loaded = there_and_back(fp.capture(model.eval(), x), tmp_path)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(loaded.module, (x,), dynamic_shapes=({0: batch},))
    y = torch.randn(5, 3, 8, 8)
    assert torch.equal(exported.module()(y), model(y))
    torch.testing.assert_close(torch.compile(loaded.module, backend="eager")(y), model(y))


@pytest.mark.parametrize(
    "text",
    [
        "insert-gates{scope=unit kind=soft}",
        "insert-gates{scope=unit kind=bernoulli}",
        *(
            f"insert-observers{{stat={s}}}"
            for s in ("entropy", "max", "contribution", "covariance")
        ),
    ],
)
def test_gates_and_observers_come_back(text: str, tmp_path: Path) -> None:
    model, x = conv()
    program = run_pipeline(fp.capture(model.eval(), x), text).program
    program(x)
    loaded = there_and_back(program, tmp_path)
    leaves = [n.target for n in program.graph.find_nodes(op="call_module")]
    assert leaves
    assert rows(program) == rows(loaded)
    for path in leaves:
        ours, theirs = (p.module.get_submodule(path) for p in (program, loaded))
        assert type(ours) is type(theirs)
        assert repr(ours) == repr(theirs)
    assert same(program.tensors(), loaded.tensors())
    assert same(program(x), loaded(x))


def test_a_named_tuple_in_another_process_is_made_anew(tmp_path: Path) -> None:
    model, x = NETWORKS["namedtuple"]()
    program = fp.capture(model.eval(), x)
    fp.save(program, tmp_path / "saved")
    code = f"""
import torch, fxprune as fp
out = fp.load({str(tmp_path / "saved")!r})(torch.ones(3, 4))
assert type(out).__name__ == "Out" and out._fields == ("logits", "features"), out
print(out.logits.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    wanted = program(torch.ones(3, 4)).logits
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), wanted)


def test_a_class_that_nobody_registered_says_what_to_import(tmp_path: Path) -> None:
    model, x = NETWORKS["dataclass"]()
    fp.save(fp.capture(model.eval(), x), tmp_path / "saved")
    code = f"import fxprune as fp; fp.load({str(tmp_path / 'saved')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "import the package that has it first: import test_round_trip" in done.stderr


def test_an_operator_of_a_library_is_found_where_it_was_imported(tmp_path: Path) -> None:
    @torch.library.custom_op("fxprune_round_trip::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    model = Calls(lambda m, x: twice(m.a(x)), a=nn.Linear(4, 6))
    x = torch.randn(2, 4)
    loaded = there_and_back(fp.capture(model.eval(), x), tmp_path)
    assert torch.equal(loaded(x), model(x))
    code = f"import fxprune as fp; fp.load({str(tmp_path / 'saved')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "import that first: import fxprune_round_trip" in done.stderr


def test_outputs_of_transformers_need_no_import(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    ids = torch.randint(0, 60, (2, 6))
    program = fp.capture(model, kwargs={"input_ids": ids, "use_cache": False})
    fp.save(program, tmp_path / "saved")
    code = f"""
import torch, fxprune as fp
program = fp.load({str(tmp_path / "saved")!r})
out = program(**program.kwargs)
assert type(out).__name__ == "CausalLMOutputWithCrossAttentions", type(out)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_cannot_be_found_again_is_not_saved(tmp_path: Path) -> None:
    program = fp.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4))
    next(n for n in program.nodes if n.op == "call_function").target = nn.functional.linear
    with pytest.raises(LoadError, match="a call of linear cannot be saved"):
        fp.save(program, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
