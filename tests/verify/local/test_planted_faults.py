"""What the check of the whole finds, the local check finds too: faults of each kind, planted in passes and in plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, cast

import pytest
import torch
from torch import fx, nn

import fxprune as fp
from fxprune.analysis.cache import solved
from fxprune.errors import PipelineError
from fxprune.graph.editor import Editor
from fxprune.graph.program import Program
from fxprune.pipeline import Context, run_pipeline
from fxprune.verify.check import Check
from fxprune.verify.local import compare_plan

ATEN = torch.ops.aten
Fault = Callable[[Editor], None]


class Net(nn.Module):
    """A convolution with a norm that train mode changes, a difference, a shared matrix, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.fc.weight
        self.table = nn.Parameter(torch.arange(4.0) + 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        y = self.fc(y) - self.table * y.sigmoid()
        return self.head(y).softmax(-1), y.view(y.shape[0], 2, 2)


@dataclass(frozen=True)
class Plant(fp.Rewrite):
    """Does what it is told to an editor."""

    name: ClassVar[str] = "plant"
    fault: Fault = field(default=lambda editor: None, compare=False)

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        self.fault(editor)
        return editor.finish()


def find(editor: Editor, name: str) -> fx.Node:
    return next(n for n in editor.nodes if getattr(n.target, "_opname", n.target) == name)


def wrong_edge(editor: Editor) -> None:
    """The sigmoid reads what the layer returns."""
    find(editor, "sigmoid").args = (find(editor, "linear"),)
    find(editor, "linear").append(find(editor, "sigmoid"))


def no_bias(editor: Editor) -> None:
    node = find(editor, "linear")
    node.args = node.args[:2]


def swapped(editor: Editor) -> None:
    node = find(editor, "sub")
    node.args = (node.args[1], node.args[0])


def broken_tensor(editor: Editor) -> None:
    """Of a node that stays as it is, in its last digits but those of float32."""
    editor.set_tensor("table", editor.tensor("table").detach() * (1 + 1e-3))


def shared_tensor(editor: Editor) -> None:
    """One of two that share a tensor has its own, of other numbers."""
    read = find(editor, "linear").args[1]
    assert isinstance(read, fx.Node)
    new = editor.add_tensor("other", nn.Parameter(editor.tensor(str(read.target)) * 2), before=read)
    [n for n in editor.nodes if n.target is ATEN.linear.default][-1].update_arg(1, new)


def small_change(editor: Editor) -> None:
    """Below the rounding of float32, so that float64 alone shows it."""
    node = find(editor, "batch_norm")
    node.args = (*node.args[:7], 2e-5, *node.args[8:])


def outputs_swapped(editor: Editor) -> None:
    node = editor.graph.output_node()
    node.args = (tuple(reversed(cast("tuple[fx.Node, fx.Node]", node.args[0]))),)


def batch_written(editor: Editor) -> None:
    """Right for as many rows as the example has."""
    node = find(editor, "view")
    node.args = (node.args[0], [8, 2, 2])


def rows_dropped(editor: Editor) -> None:
    """Right for up to as many rows as the example has, and it raises nowhere."""
    node = find(editor, "sigmoid")
    source = node.args[0]
    part = editor.call(ATEN.slice.Tensor, (source, 0, 0, 2), before=node)
    tail = editor.call(ATEN.slice.Tensor, (source, 0, 2, 8), before=node)
    zero = editor.call(ATEN.mul.Tensor, (tail, 0), before=node)
    node.args = (editor.call(ATEN.cat.default, ([part, zero],), before=node),)


def wrong_statistics(editor: Editor) -> None:
    """Right in eval mode: of the running statistics, where train mode takes those of the batch."""
    node = find(editor, "batch_norm")
    node.args = (*node.args[:5], False, *node.args[6:])


def dtype_lost(editor: Editor) -> None:
    node = find(editor, "sigmoid")
    source = node.args[0]
    cut = editor.call(ATEN._to_copy.default, (source,), {"dtype": torch.int32}, before=node)
    node.args = (editor.call(ATEN._to_copy.default, (cut,), {"dtype": torch.float32}, before=node),)


def written_in_place(editor: Editor) -> None:
    """The layer's input is doubled in place, and other nodes read it too."""
    node = find(editor, "linear")
    node.args = (editor.call(ATEN.mul_.Tensor, (node.args[0], 2), before=node), *node.args[1:])


FAULTS: list[tuple[Fault, bool]] = [
    *((f, False) for f in (wrong_edge, no_bias, swapped, broken_tensor, shared_tensor)),
    *((f, False) for f in (outputs_swapped, batch_written, rows_dropped, small_change)),
    *((f, False) for f in (dtype_lost, written_in_place)),
    (wrong_statistics, True),
]


@pytest.fixture(scope="module")
def programs() -> dict[bool, Program]:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5)
    return {train: fp.capture(Net().train(train), x) for train in (False, True)}


@pytest.mark.parametrize(("fault", "train"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_planted_fault_is_found(fault: Fault, train: bool, programs: dict[bool, Program]) -> None:
    for how in ("full", "local"):
        with pytest.raises(PipelineError, match="pass plant failed"):
            run_pipeline(programs[train], Plant(fault=fault), verify=how)


def test_what_is_right_is_cheap(programs: dict[bool, Program]) -> None:
    def harmless(editor: Editor) -> None:
        node = find(editor, "sigmoid")
        twice = [editor.call(ATEN.neg.default, (node.args[0],), before=node)]
        node.args = (editor.call(ATEN.neg.default, (twice[0],), before=node),)

    result = run_pipeline(programs[False], Plant(fault=harmless))
    (check,), (whole,) = result.steps[0].checks, result.checks
    assert (check.regions, check.batches, check.dtype) == (1, (3,), "float64")
    assert (whole.regions, whole.batches, whole.dtype) == (None, (2, 3), "float32")
    assert not result.select("*", "missed")


def plan_faults(small: Program) -> dict[str, Program]:
    """Smaller programs with a fault each."""
    faults = {}
    for name, change in (
        (
            "other channels",
            lambda e: e.set_tensor("0.weight", e.tensor("0.weight").detach().flip(0)),
        ),
        ("another bias", lambda e: e.set_tensor("1.bias", e.tensor("1.bias").detach() + 1e-6)),
        ("another mean", lambda e: e.set_tensor("1.running_mean", torch.full((3,), 1e-7))),
        ("no bias", no_bias),
        ("no activation", lambda e: e.replace(find(e, "relu"), find(e, "relu").args[0])),
    ):
        editor = Editor(small)
        change(editor)
        faults[name] = editor.finish()
    return faults


def test_faults_of_a_plan_are_found() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    program = fp.capture(nn.Sequential(*layers).eval(), torch.randn(8, 3, 5, 5))
    plan = fp.plan(program, {"0.weight": (0, [1])})
    small, axes = fp.shrink(program, plan), solved(program)

    def verdict(found: Program) -> list[Check]:
        return compare_plan(program, axes, plan, found, how="local", seed=0)[0]

    right = verdict(small)
    assert [c.ok for c in right] == [True, True]
    assert right[0].regions
    for name, wrong in plan_faults(small).items():
        assert not all(c.ok for c in verdict(wrong)), name


def test_where_a_region_cannot_be_cut_the_whole_decides() -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = x.relu()
            z[:, 0].mul_(2)
            return z.neg().neg()

    torch.manual_seed(0)
    program = fp.capture(Writes(), torch.randn(4, 3))

    def drop(editor: Editor) -> None:
        last = [n for n in editor.nodes if n.target is ATEN.neg.default][-1]
        editor.replace(last, last.args[0].args[0])  # type: ignore[arg-type, union-attr]

    result = run_pipeline(program, Plant(fault=drop))
    assert all(c.ok for c in result.steps[0].checks)
    (remark,) = result.select("plant")
    assert (remark.code, "in place" in remark.why) == ("plant.verified-whole", True)


def test_a_rewrite_that_relies_on_what_came_before_is_proved_with_it() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - 1).abs().abs().sqrt()

    def once(editor: Editor) -> None:
        last = [n for n in editor.nodes if n.target is ATEN.abs.default][-1]
        editor.replace(last, cast(fx.Node, last.args[0]))

    program = fp.capture(Twice(), torch.randn(4, 3))
    result = run_pipeline(program, Plant(fault=once))
    assert result.steps[0].checks[0].regions == 1


def test_layers_in_float32_are_fused_and_verified() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU())
    for how in ("local", "full"):
        result = fp.run(layers, torch.randn(2, 3, 6, 6), "fuse-linear", verify=how)
        assert len(result.steps[0].checks) == 2
        assert result.steps[0].checks[1].tolerance == 1e-9
