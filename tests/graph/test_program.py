"""Tests of fxprune.graph.program: a traced module that was copied or pickled still switches modes."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.mode import MODE
from fxprune.graph.program import TracedModule, module_path, module_paths


class Net(nn.Module):
    """Tied weights, dropout, batch norm, buffers, an unused parameter, inputs and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.conv = nn.Conv2d(6, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad = False
        self.spare = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.ones(8), persistent=False)

    def forward(self, xs: list[torch.Tensor], *, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.drop(self.norm(self.conv(self.stem(xs[0])))).mean((2, 3)) + self.shift
        y = y.reshape(xs[0].shape[0], 2, 4).flatten(1)
        return {"y": self.b(self.a(y)) * mask, "z": xs[1]}


X = ([torch.randn(2, 3, 8, 8), torch.ones(2)],)
MASK = {"mask": torch.ones(2, 8)}


def by_pickle(module: TracedModule) -> Any:
    return pickle.loads(pickle.dumps(module))


def by_torch_save(module: TracedModule) -> Any:
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


WAYS: list[Callable[[TracedModule], Any]] = [by_pickle, copy.deepcopy, by_torch_save]
every_way = pytest.mark.parametrize("way", WAYS)
both_modes = pytest.mark.parametrize("training", [True, False])


def captured(training: bool) -> TracedModule:
    torch.manual_seed(0)
    return fp.capture(Net().train(training), X, MASK).module


def run(module: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    out: torch.Tensor = module(
        [torch.full((3, 3, 8, 8), 2.0), torch.ones(3)], mask=torch.ones(3, 8)
    )["y"]
    return out


@every_way
@both_modes
def test_copy_switches_as_the_original_does(
    way: Callable[[TracedModule], Any], training: bool
) -> None:
    module = captured(training)
    twin = way(module)
    assert isinstance(twin, TracedModule)
    assert twin.training is training
    for mode in (training, not training, training):
        assert torch.equal(run(twin.train(mode)), run(module.train(mode)))
    state, wanted = twin.state_dict(), module.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[k], wanted[k]) for k in wanted)
    assert int(state["norm.num_batches_tracked"]) == (2 if training else 1)


@every_way
def test_copy_shares_nothing_and_keeps_what_is_tied(way: Callable[[TracedModule], Any]) -> None:
    module = captured(True)
    twin = way(module)
    assert twin.a.weight is twin.b.weight
    assert not twin.a.bias.requires_grad
    assert dict(twin.named_buffers()).keys() == dict(module.named_buffers()).keys()
    before = run(module.eval())
    with torch.no_grad():
        twin.conv.weight.zero_()
    assert torch.equal(run(module), before)
    torch.autograd.backward(run(twin.train()).sum())
    assert all(p.grad is None for p in module.parameters())


@pytest.fixture(scope="module")
def module() -> TracedModule:
    return captured(False)


@every_way
def test_nodes_keep_names_marks_and_modules(
    way: Callable[[TracedModule], Any], module: TracedModule
) -> None:
    twin = way(module)
    for ours, theirs in zip(module.graph.nodes, twin.graph.nodes, strict=True):
        assert (ours.name, str(ours.target)) == (theirs.name, str(theirs.target))
        assert ours.meta.get(MODE) == theirs.meta.get(MODE)
        assert module_path(ours) == module_path(theirs)
    assert sum(MODE in n.meta for n in twin.graph.nodes) == 2


@every_way
def test_a_copy_of_a_copy_is_the_same(
    way: Callable[[TracedModule], Any], module: TracedModule
) -> None:
    assert way(way(module)).code == module.code


@pytest.fixture(scope="module")
def small() -> TracedModule:
    return fp.prune(Net().eval(), X, MASK, keep=0.6).program.module


@every_way
def test_pruned_module(way: Callable[[TracedModule], Any], small: TracedModule) -> None:
    twin = way(small)
    assert twin.get_parameter("stem.weight").shape == small.get_parameter("stem.weight").shape
    for mode in (True, False):
        assert torch.equal(run(twin.train(mode)), run(small.train(mode)))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cond(x.sum() > 0, lambda v: v.sin() + 1, lambda v: v.cos(), (self.a(x),))
        out: torch.Tensor = self.drop(y)
        return out


@pytest.fixture(scope="module")
def branches() -> TracedModule:
    return fp.capture(Branches().eval(), (torch.randn(2, 4),)).module


@every_way
def test_branches(way: Callable[[TracedModule], Any], branches: TracedModule) -> None:
    twin = way(branches)
    for x in (torch.ones(2, 4), -torch.ones(2, 4)):
        assert torch.equal(twin(x), branches(x))
    assert (twin.train()(torch.ones(2, 4)) == 0).any()


def test_another_process_reads_it(tmp_path: Path) -> None:
    module = captured(False)
    torch.save(module, tmp_path / "net.pt")
    code = f"""
import torch
module = torch.load({str(tmp_path / "net.pt")!r}, weights_only=False)
x = [torch.full((3, 3, 8, 8), 2.0), torch.ones(3)]
module.train()(x, mask=torch.ones(3, 8))["y"].sum().backward()
assert module.norm.num_batches_tracked == 1
assert module.eval()(x, mask=torch.ones(3, 8))["y"].allclose(torch.load({str(tmp_path / "y.pt")!r}))
"""
    module.train()
    run(module)
    torch.save(run(module.eval()), tmp_path / "y.pt")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_program_prints_as_one_line() -> None:
    program = fp.capture(nn.Linear(3, 2), torch.randn(4, 3))
    assert repr(program.eval()) == "Program(Linear: 8 parameters, 5 nodes, eval mode)"


def test_module_paths_have_those_that_hold_others() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    program = fp.capture(nn.Sequential(nn.Sequential(inner)).eval(), torch.randn(2, 4))
    assert module_paths(program) == ["0", "0.0", "0.0.0", "0.0.1"]
