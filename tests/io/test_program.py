"""Programs on disk: there and back in a new process, trainable, and never half a directory."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import LoadError
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.io import load, save
from fxprune.pipeline import run_pipeline
from fxprune.plan import fingerprint
from fxprune.report import Report, summary


class Net(nn.Module):
    """Tied weights, dropout, batch norm, buffers, a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad = False
        self.head = nn.Linear(8, 2)
        self.spare = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.ones(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(self.norm(self.conv(x))).mean((2, 3)) + self.shift
        out: torch.Tensor = self.head(self.b(self.a(y)))
        return out


@dataclass(frozen=True)
class Pruned:
    program: Program
    plan: fp.Plan
    report: Report
    model: nn.Module | None = None


@pytest.fixture(scope="module")
def pruned() -> Pruned:
    torch.manual_seed(0)
    program = fp.capture(Net(), (torch.randn(1, 3, 8, 8),))
    plan = fp.plan(program, {"conv.weight": (0, [1, 2, 5])})
    small = fp.shrink(program, plan)
    return Pruned(small, plan, Report(summary(program), summary(small)))


@pytest.fixture(scope="module")
def folder(pruned: Pruned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("saved") / "net"
    save(pruned, target)
    return target


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "net"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def step(program: Program) -> dict[str, torch.Tensor]:
    """The state after one step of training."""
    torch.manual_seed(1)
    module = program.module.train()
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    module(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_state_dict_is_the_same(pruned: Pruned, folder: Path) -> None:
    ours, theirs = pruned.program.module.state_dict(), load(folder).module.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_outputs_are_the_same_at_another_batch_size(pruned: Pruned, folder: Path) -> None:
    x = torch.randn(5, 3, 8, 8)
    ours = fp.shrink(*_again(pruned)).eval()
    assert torch.equal(load(folder).eval()(x), ours(x))


def test_a_training_step_is_the_same(pruned: Pruned, folder: Path) -> None:
    theirs, ours = step(load(folder)), step(fp.shrink(*_again(pruned)))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def _again(pruned: Pruned) -> tuple[Program, fp.Plan]:
    assert pruned.plan.program is not None
    return pruned.plan.program, pruned.plan


def test_training_moves_the_statistics(folder: Path) -> None:
    program = load(folder)
    step(program)
    assert program.tensors()["norm.num_batches_tracked"] == 1


def test_eval_mode_leaves_the_statistics(folder: Path) -> None:
    program = load(folder).eval()
    program(torch.randn(4, 3, 8, 8))
    assert program.tensors()["norm.num_batches_tracked"] == 0


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


class Signed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(Sign.apply(self.a(x)))


def test_a_function_of_python_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    model, x = Signed().train(), torch.randn(3, 4)
    outcome = fp.prune(model, x, keep=0.7)
    for what in (outcome, outcome.program):
        with pytest.raises(LoadError, match=rf"the autograd Function {__name__}\.Sign") as error:
            save(what, tmp_path / "new" / "net")
        assert error.value.where.lower().startswith("node sign")
        assert not any(tmp_path.iterdir())
    # As the error advises.
    save(fp.capture(fp.write_back(model, outcome.plan).eval(), x), tmp_path / "net")
    assert torch.equal(load(tmp_path / "net")(x), outcome.program(x))


def test_tied_weights_stay_one(folder: Path) -> None:
    tensors = load(folder).tensors()
    assert tensors["a.weight"] is tensors["b.weight"]


def test_requires_grad_and_memory_format_stay(folder: Path) -> None:
    tensors = load(folder).tensors()
    assert not tensors["a.bias"].requires_grad
    assert tensors["b.bias"].requires_grad
    assert tensors["conv.weight"].is_contiguous(memory_format=torch.channels_last)


def test_modules_and_lines_stay(pruned: Pruned, folder: Path) -> None:
    assert summary(load(folder)) == summary(pruned.program)


class Computed(nn.Module):
    """A view to a multiple of a length that is known at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.a(x).view(x.shape[0] * 6).view(-1, 6))
        return y


def test_lengths_that_are_spelled_anew_leave_the_fingerprint(tmp_path: Path) -> None:
    program = fp.capture(Computed(), torch.randn(4, 4))
    small = fp.shrink(program, fp.plan(program, {"a.weight": (0, [1, 2])}))
    plan = fp.plan(small, {"a.weight": (0, [3])})
    fp.save(small, tmp_path / "small")
    loaded = load(tmp_path / "small")
    assert fp.verify(loaded, plan, fp.shrink(loaded, plan)).ok


def test_a_plan_for_the_program_fits_the_loaded_one(pruned: Pruned, folder: Path) -> None:
    loaded = load(folder)
    assert fingerprint(loaded) == fingerprint(pruned.program)
    assert [n.name for n in loaded.nodes] == [n.name for n in pruned.program.nodes]


def test_loaded_program_is_pruned_again(folder: Path) -> None:
    loaded = load(folder)
    plan = fp.plan(loaded, {"conv.weight": (0, [0])})
    assert fp.verify(loaded, plan, fp.shrink(loaded, plan)).ok


def test_plan_and_report_lie_beside(pruned: Pruned, folder: Path) -> None:
    assert fp.Plan.load(folder / "plan.json") == pruned.plan
    assert Report.from_json(json.loads((folder / "report.json").read_text())) == pruned.report


def test_weights_are_stored_once(pruned: Pruned, tmp_path: Path) -> None:
    wide = fp.capture(nn.Linear(256, 256), (torch.randn(2, 256),))
    save(wide, tmp_path / "wide")
    assert (tmp_path / "wide" / "graph.json").stat().st_size < 256 * 256


def test_new_process_needs_no_class(folder: Path) -> None:
    code = f"""
import torch, fxprune.io
program = fxprune.io.load({str(folder)!r})
program.module(torch.randn(3, 3, 8, 8)).sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda d: _cut(d / "weights.safetensors"), "weights.safetensors is truncated"),
    "altered": (lambda d: _flip(d / "graph.json"), "graph.json was altered"),
    "missing": (lambda d: (d / "program.json").unlink(), "program.json is missing"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "does not contain a saved program"),
    "cut manifest": (lambda d: _cut(d / "manifest.json"), "manifest.json is truncated"),
    "version": (lambda d: _version(d / "manifest.json"), "is not known"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _version(path: Path) -> None:
    path.write_text(path.read_text().replace('"version": 4', '"version": 9'))


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(copied: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(copied)
    with pytest.raises(LoadError, match=message):
        load(copied)


def test_an_older_one_is_replaced(copied: Path) -> None:
    save(fp.capture(nn.Linear(4, 3), (torch.randn(2, 4),)), copied)
    assert load(copied).name == "Linear"
    assert not (copied / "plan.json").exists()


def test_another_directory_is_left_alone(pruned: Pruned, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LoadError, match="will not overwrite"):
        save(pruned, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_failure_leaves_nothing_behind(
    pruned: Pruned, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fxprune.io.program.save_weights", broken)
    with pytest.raises(LoadError, match="disk full"):
        save(pruned, copied)
    assert [p.name for p in copied.parent.iterdir()] == ["net"]
    assert load(copied).name == "Net"


def test_meta_program_is_refused(tmp_path: Path) -> None:
    program = fp.capture(nn.Linear(4, 3, device="meta"), (torch.randn(2, 4),))
    with pytest.raises(LoadError, match="meta device"):
        save(program, tmp_path / "net")


class Dicts(nn.Module):
    def forward(
        self, x: torch.Tensor, *, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        return {"y": x if mask is None else x * mask, "z": x.sum(1)}


def test_kwargs_and_dicts_survive(tmp_path: Path) -> None:
    program = fp.capture(Dicts(), (torch.randn(2, 4),), {"mask": torch.ones(2, 4)})
    save(program, tmp_path / "net")
    x, mask = torch.randn(3, 4), torch.zeros(3, 4)
    assert torch.equal(load(tmp_path / "net")(x, mask=mask)["y"], x * 0)


def test_gates_stay_gates(pruned: Pruned, tmp_path: Path) -> None:
    gated = run_pipeline(pruned.program, "insert-gates{scope=unit kind=bernoulli}").program
    save(gated, tmp_path / "gated")
    loaded = load(tmp_path / "gated")
    assert {k: repr(g) for k, g in gates(loaded).items()} == {
        k: repr(g) for k, g in gates(gated).items()
    }
    assert gates(gated)
    assert list(loaded.tensors()) == list(gated.tensors())
    plan = fp.plan(gated, {})
    assert fp.verify(loaded, plan, fp.shrink(loaded, plan)).ok
