from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fxprune as fp
from fxprune.errors import PlanError
from fxprune.graph.program import Program
from fxprune.plan import Rescale, ScaleArgument, SetArgument
from fxprune.shrink import tensors
from fxprune.shrink.nodes import edit_graph
from fxprune.shrink.tensors import memory_format, run_length, slice_axes


class Shared(nn.Module):
    """One convolution under two names, a mean over channels, a frozen head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1, bias=False)
        self.a = nn.Conv2d(6, 6, 1)
        self.b = self.a
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.a(self.first(x))))
        x = x - x.mean(1, keepdim=True)
        return self.head(x.flatten(2).mean(2).view(x.shape[0], 6))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    model = Shared().eval().to(memory_format=torch.channels_last)
    return fp.capture(model, (torch.randn(2, 3, 4, 4),))


@pytest.fixture(scope="module")
def small(program: Program) -> Program:
    return fp.shrink(program, fp.plan(program, {"a.weight": (0, [1, 4])}))


def test_tensors_are_cut_and_stay_shared(program: Program, small: Program) -> None:
    assert small.tensors()["a.weight"].shape == (4, 4, 1, 1)
    assert small.tensors()["a.weight"] is small.tensors()["b.weight"]
    assert program.tensors()["a.weight"].shape == (6, 6, 1, 1)


def test_what_is_not_cut_is_a_copy(program: Program, small: Program) -> None:
    ours, theirs = small.tensors()["head.bias"], program.tensors()["head.bias"]
    assert torch.equal(ours, theirs)
    assert ours.data_ptr() != theirs.data_ptr()


def test_requires_grad_and_kind_stay(small: Program) -> None:
    tensors = small.tensors()
    assert isinstance(tensors["first.weight"], nn.Parameter)
    assert tensors["first.weight"].requires_grad
    assert not tensors["head.weight"].requires_grad
    assert not isinstance(tensors["norm.running_mean"], nn.Parameter)


def test_example_values_have_the_smaller_sizes(small: Program) -> None:
    convolutions = [n for n in small.nodes if "conv2d" in str(n.target)]
    assert all(n.meta["val"].shape[1] == 4 for n in convolutions)


def test_an_average_over_channels_is_rescaled(program: Program, small: Program) -> None:
    (edit,) = (
        e for e in fp.plan(program, {"a.weight": (0, [1, 4])}).edits if isinstance(e, Rescale)
    )
    assert (edit.numerator, edit.denominator) == (4, 6)
    (scaled,) = (n for n in small.nodes if n.target is torch.ops.aten.mul.Tensor)
    assert scaled.meta["val"].shape[1:] == (1, 4, 4)
    assert fp.verify(program, fp.plan(program, {"a.weight": (0, [1, 4])}), small).ok


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_slices_keep_the_memory_format(layout: torch.memory_format) -> None:
    whole = torch.randn(4, 3, 5, 6).contiguous(memory_format=layout)
    for cut in ({}, {0: np.array([0, 2]), 2: np.array([1, 3])}):
        part = slice_axes(whole, cut)
        assert memory_format(part) == layout
        assert part.data_ptr() != whole.data_ptr()
    assert torch.equal(part, whole[[0, 2]][:, :, [1, 3]])


CUTS = {
    (): {},
    (0,): {0: [0, 2, 3, 7]},
    (1,): {1: [1, 4, 5]},
    (3,): {3: [2, 3, 4, 5]},
    (0, 1): {0: [0, 2, 3, 7], 1: [1, 4, 5]},
    (0, 3): {0: [0, 2, 3, 7], 3: [0, 1, 4, 5]},
    (1, 2, 3): {1: [0], 2: [1, 2], 3: [3]},
    (0, 1, 2, 3): {0: [7], 1: [0, 5], 2: [0, 2], 3: [0, 2, 4]},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("axes", CUTS, ids=str)
def test_large_tensors_are_cut_as_small_ones(
    axes: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = torch.randn(8, 6, 3, 6).gt(0) if dtype is torch.bool else torch.randn(8, 6, 3, 6)
    whole = whole.to(dtype).contiguous(memory_format=layout)
    cut = {axis: np.array(positions) for axis, positions in CUTS[axes].items()}
    small = slice_axes(whole, cut)
    monkeypatch.setattr(tensors, "LARGE", 0)
    monkeypatch.setattr(tensors, "BLOCK", 40)
    large = slice_axes(whole, cut)
    assert torch.equal(small, large)
    assert large.is_contiguous(memory_format=layout)
    assert large.dtype == dtype
    assert large.untyped_storage().nbytes() == large.nbytes
    assert torch.equal(
        large, whole[np.ix_(*(cut.get(i, np.arange(n)) for i, n in enumerate(whole.shape)))]
    )


def test_an_axis_that_loses_everything_is_cut_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "LARGE", 0)
    none = np.zeros(0, np.int64)
    assert slice_axes(torch.ones(3, 4), {0: none, 1: np.array([1])}).shape == (0, 1)
    assert slice_axes(torch.ones(3, 4), {0: np.array([1]), 1: none}).shape == (1, 0)


@pytest.mark.parametrize(
    ("kept", "length", "run"),
    [
        (range(12), 12, 12),
        ([0, 1, 2, 6, 7, 8], 12, 3),
        ([2, 3, 4, 5, 8, 9], 10, 2),
        ([0, 1, 4, 5], 7, 1),
        ([3], 4, 1),
        ([], 8, 8),
    ],
)
def test_run_length_is_that_of_whole_pieces(kept: list[int], length: int, run: int) -> None:
    assert run_length(np.array(kept, np.int64), length) == run


def test_memory_format_of_volumes_and_of_views() -> None:
    volume = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert memory_format(slice_axes(volume, {1: np.array([0, 2])})) == torch.channels_last_3d
    assert memory_format(torch.randn(3, 4).t()) == torch.contiguous_format


def test_an_edit_checks_what_it_replaces(program: Program) -> None:
    node = next(n.name for n in program.nodes if "aten.mean" in str(n.target))
    with pytest.raises(PlanError, match="keepdim is True, but the plan expects 7"):
        edit_graph(program.graph, [SetArgument(node, "keepdim", None, 7, 8)])


def test_a_length_known_at_run_time_is_scaled() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(x.shape[0] * 6).view(-1, 6))

    program = fp.capture(Net(), (torch.randn(3, 4),))
    plan = fp.plan(program, {"a.weight": (0, [2])})
    small = fp.shrink(program, plan)
    assert fp.verify(program, plan, small).ok
    assert ScaleArgument in {type(e) for e in plan.edits}
    added = [n for n in small.nodes if n.target in (operator.mul, operator.floordiv)]
    assert all(isinstance(n.meta["val"], torch.SymInt) for n in added)


class Sizes(torch.fx.Interpreter):
    """Holds what every node computes against the example value it carries."""

    def run_node(self, n: torch.fx.Node) -> Any:
        found = super().run_node(n)
        if n.op != "output":
            pairs = zip(tree_leaves(found), tree_leaves(n.meta["val"]), strict=True)
            assert all(a.shape[1:] == b.shape[1:] for a, b in pairs if isinstance(a, Tensor))
        return found


def test_every_node_carries_the_size_of_what_it_computes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            p, q = self.a(x).chunk(2, -1)
            values, _ = x.max(0, keepdim=True)
            return self.b(p) + self.b(q.sort(0)[0]) + self.c(values)

    x = torch.randn(3, 4)
    program = fp.capture(Net(), (x,))
    small = fp.shrink(program, fp.plan(program, {"b.weight": (1, [2])}))
    Sizes(small.module).run(x)
