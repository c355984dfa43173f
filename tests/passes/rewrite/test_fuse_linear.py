from __future__ import annotations

import itertools
from math import gcd
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune as fp
from fxprune.cost.macs import node_macs
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune_passes.rewrite.fuse_linear import FuseLinear
from fxprune_passes.rewrite.layers.affine_layer import read_layer

CONV: Any = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM: Any = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ALWAYS = "fuse-linear{when=always}"


def layers(program: Program) -> int:
    return sum(read_layer(n) is not None for n in program.nodes)


def calls(program: Program) -> int:
    return sum(n.op == "call_function" for n in program.nodes)


def missed(result: Any) -> list[tuple[str, str]]:
    return [(r.code, r.why) for r in result.select(kind="missed")]


def shaken(model: nn.Module) -> nn.Module:
    """Float64, and nothing at a value that would hide a wrong formula."""
    torch.manual_seed(1)
    for module in model.double().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def size_of(dims: int) -> int:
    return {0: 0, 1: 23, 2: 14, 3: 9}[dims]


@st.composite
def convolution(draw: st.DrawFn, dims: int, inputs: int, outputs: int) -> nn.Module:
    if dims == 0:
        return nn.Linear(inputs, outputs, draw(st.booleans()))
    kernel = draw(st.tuples(*(st.integers(1, 3),) * dims))
    common = [g for g in (1, 2, 3, 6) if gcd(inputs, outputs) % g == 0]
    return CONV[dims](
        inputs,
        outputs,
        kernel,
        draw(st.tuples(*(st.integers(1, 2),) * dims)),
        draw(st.tuples(*(st.integers(0, 1),) * dims)),
        draw(st.tuples(*(st.integers(1, 2),) * dims)),
        draw(st.sampled_from(common)),
        draw(st.booleans()),
    )


def fits(row: list[Any], size: int) -> bool:
    """Whether every layer of a row still finds a whole window, along every axis of an image of this size."""
    if isinstance(row[0], nn.Linear):
        return True
    sizes = [size] * len(row[0].kernel_size)
    for m in row:
        windows = zip(sizes, m.kernel_size, m.stride, m.padding, m.dilation, strict=True)
        sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in windows]
        if min(sizes) < 1:
            return False
    return True


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[nn.Module], torch.Tensor]:
    dims = draw(st.integers(0, 3))
    width = [6 * draw(st.integers(1, 2)) for _ in range(draw(st.integers(3, 4)))]
    row = [draw(convolution(dims, a, b)) for a, b in itertools.pairwise(width)]
    assume(fits(row, size_of(dims)))
    return row, torch.randn(2, width[0], *(size_of(dims),) * dims).double()


def exact(first: Any, second: Any) -> bool:
    """Whether two modules in a row are one layer, by the conditions of the design."""
    if isinstance(first, nn.Linear):
        return True
    pads = any(second.padding)
    single = all(k == 1 for k, p in zip(first.kernel_size, second.padding, strict=True) if p)
    return not pads or (single and first.bias is None)


@settings(max_examples=8, deadline=None, database=None)
@given(chains())
def test_two_layers_become_one_exactly_where_the_border_allows(rewritten: Any, drawn: Any) -> None:
    row, x = drawn
    result = rewritten(shaken(nn.Sequential(*row[:2])), x, ALWAYS)
    assert layers(result.program) == (1 if exact(*row[:2]) else 2)
    assert bool(missed(result)) == (not exact(*row[:2]))
    assert all(code == "fuse-linear.border" for code, _ in missed(result))


@settings(max_examples=5, deadline=None, database=None)
@given(chains(), st.booleans())
def test_rows_with_batch_norm_stay_exact_and_cost_no_more(
    rewritten: Any, drawn: Any, norm: bool
) -> None:
    row, x = drawn
    dims = x.dim() - 2
    mixed = [m for layer in row for m in (layer, NORM[dims](layer.weight.shape[0]))]
    model = shaken(nn.Sequential(*(mixed if norm else row)))
    result = rewritten(model, x, "fold-batchnorm | fuse-linear")
    before = run_pipeline(result.original, "fold-batchnorm").program
    assert sum(node_macs(result.program).values()) <= sum(node_macs(before).values())


def two(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (two(nn.Linear(64, 8), nn.Linear(8, 64)), False),
        (two(nn.Linear(8, 64), nn.Linear(64, 8)), True),
    ],
)
def test_linear_layers_are_fused_where_it_is_cheaper(
    rewritten: Any, model: nn.Module, fused: bool
) -> None:
    x = torch.randn(3, model[0].in_features).double()  # type: ignore[index]
    result = rewritten(shaken(model), x, "fuse-linear")
    assert layers(result.program) == (1 if fused else 2)
    if not fused:
        why = (
            "the fused layer would cost 12,288 MACs instead of 3,072 MACs; "
            "all 8 channels between the layers are needed (rank 8)"
        )
        assert missed(result) == [("fuse-linear.cost", why)]
    assert layers(rewritten(shaken(model), x, ALWAYS).program) == 1


def test_two_wide_kernels_are_cheaper_apart(rewritten: Any) -> None:
    model = shaken(two(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)))
    x = torch.randn(1, 8, 24, 24).double()
    assert layers(rewritten(model, x, "fuse-linear").program) == 2
    assert layers(rewritten(model, x, ALWAYS).program) == 1


def test_a_row_is_cut_where_all_together_costs_least(rewritten: Any) -> None:
    widths = [16, 4, 16, 64, 4]
    row = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    result = rewritten(shaken(nn.Sequential(*row)), torch.randn(2, 16).double(), "fuse-linear")
    assert layers(result.program) == 1
    widths = [16, 4, 64, 32]
    row = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    result = rewritten(shaken(nn.Sequential(*row)), torch.randn(2, 16).double(), "fuse-linear")
    assert layers(result.program) == 2


def test_the_border_may_be_given_up_and_is_measured() -> None:
    model = shaken(two(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)))
    x = torch.randn(1, 4, 12, 12).double()
    program = fp.capture(model, x)
    result = run_pipeline(program, "fuse-linear{when=always allow-border=true}")
    assert layers(result.program) == 1
    codes = [r.code for r in result.remarks]
    assert "fuse-linear.border-error" in codes
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(result.program(x)[inner], program(x)[inner])
    assert not torch.allclose(result.program(x), program(x))


class RepVGG(nn.Module):
    def __init__(self, groups: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        d = dilation
        self.wide = nn.Conv2d(8, 8, 3, stride, d, d, groups, bias=False)
        self.small = nn.Conv2d(8, 8, 1, stride, groups=groups, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](self.wide(x)) + self.norms[1](self.small(x))
        return torch.relu(y + self.norms[2](x) if self.stride == 1 else y)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_repvgg_becomes_one_convolution(
    rewritten: Any, groups: int, stride: int, dilation: int
) -> None:
    model = shaken(RepVGG(groups, stride, dilation))
    x = torch.randn(2, 8, 9, 9).double()
    result = rewritten(model, x, "fold-batchnorm | fuse-linear")
    assert calls(result.program) == 2
    conv = next(read_layer(n) for n in result.program.nodes if read_layer(n))
    assert conv is not None
    assert (conv.geometry.groups, conv.geometry.dilation) == (groups, (dilation, dilation))
    read = {str(n.target) for n in result.program.nodes if n.op == "get_attr"}
    assert read == {"wide.weight", "wide.bias"}
    assert stride == 2 or read == set(result.program.tensors())


class Sum(nn.Module):
    def __init__(self, one: nn.Module, two: nn.Module | None, sign: float = 1) -> None:
        super().__init__()
        self.one, self.two, self.sign = one, two, sign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = x if self.two is None else self.two(x)
        return torch.relu(torch.add(self.one(x), other, alpha=self.sign))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Sum(nn.Linear(6, 6), None), (2, 5, 6)),
        (Sum(nn.Linear(6, 4), nn.Linear(6, 4, False), -2), (2, 5, 6)),
        (Sum(nn.Conv2d(6, 6, (3, 1), padding=(1, 0)), nn.Conv2d(6, 6, (1, 3), padding=(0, 1))), (2, 6, 8, 8)),
        (Sum(nn.Conv1d(6, 6, 5, 2, 2), nn.Conv1d(6, 6, 3, 2, 1), 3), (2, 6, 11)),
        (Sum(nn.Conv1d(6, 6, 3, 1, 3, 3), nn.Conv1d(6, 6, 1)), (2, 6, 11)),
        (Sum(nn.Conv3d(6, 6, 3, 1, 1, groups=3), None, -1), (2, 6, 5, 5, 5)),
        (Sum(nn.Conv2d(6, 6, 3, padding="same"), nn.Conv2d(6, 6, 1, padding="valid")), (2, 6, 8, 8)),
    ],
)  # fmt: skip
def test_branches_of_a_sum_become_one(rewritten: Any, model: nn.Module, shape: Any) -> None:
    result = rewritten(shaken(model), torch.randn(*shape).double(), ALWAYS)
    assert calls(result.program) == 2


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            Sum(nn.Conv1d(6, 6, 2, 2), nn.Conv1d(6, 6, 3, 2, 1)),
            "the windows have different centres",
        ),
        (Sum(nn.Conv1d(6, 6, 3, 1, 1, groups=6), nn.Conv1d(6, 1, 1)), "broadcast"),
    ],
)
def test_branches_that_do_not_lie_over_one_another_stay(
    rewritten: Any, model: nn.Module, why: str
) -> None:
    result = rewritten(shaken(model), torch.randn(2, 6, 12).double(), ALWAYS)
    assert result.program is result.original
    assert why in missed(result)[0][1]


def test_branches_whose_sum_would_be_dense_stay(rewritten: Any) -> None:
    model = Sum(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1))
    result = rewritten(shaken(model), torch.randn(2, 8, 8, 8).double(), "fuse-linear")
    assert layers(result.program) == 2
    assert missed(result)[0][0] == "fuse-linear.cost"


class Scaled(nn.Module):
    """A layer, a scale and a shift of its channels, a second layer."""

    def __init__(self, one: nn.Module, two: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.one, self.two = one, two
        self.gamma, self.beta = (nn.Parameter(torch.randn(shape)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (1 - self.one(x)) * self.gamma / 2 + self.beta
        return self.two(torch.relu(y) * self.gamma - 3)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Scaled(nn.Linear(4, 6), nn.Linear(6, 3), (6,)), (2, 4)),
        (Scaled(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, groups=2), (6, 1, 1)), (2, 4, 7, 7)),
        (Scaled(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Conv1d(6, 4, 1), (1, 6, 1)), (2, 4, 7)),
    ],
)  # fmt: skip
def test_scales_and_shifts_of_channels_go_into_layers(
    rewritten: Any, model: nn.Module, shape: Any
) -> None:
    result = rewritten(shaken(model), torch.randn(*shape).double(), "fuse-linear")
    assert calls(result.program) == 3
    assert not {"gamma", "beta"} & set(result.program.tensors())


def test_a_shift_before_padding_stays(rewritten: Any) -> None:
    model = Scaled(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 3, padding=1), (6, 1, 1))
    result = rewritten(shaken(model), torch.randn(2, 4, 7, 7).double(), "fuse-linear")
    assert calls(result.program) == 5
    assert "pads with zeros, to which a nonzero shift is not added" in missed(result)[0][1]


def test_a_scale_along_another_axis_stays(rewritten: Any) -> None:
    model = Scaled(nn.Linear(4, 6), nn.Linear(6, 3), (5, 1))
    result = rewritten(shaken(model), torch.randn(2, 5, 4).double(), "fuse-linear")
    assert "it does not vary along the channel axis" in missed(result)[0][1]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(torch.relu(self.two(self.one(x)))))


class ReadTwice(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        return self.two(y) + torch.relu(y)


@pytest.mark.parametrize(
    ("kind", "why"), [(Shared, "is read 2 times"), (ReadTwice, "linear has 2 readers")]
)
def test_what_others_read_is_left_and_said(rewritten: Any, kind: Any, why: str) -> None:
    result = rewritten(shaken(kind()), torch.randn(2, 4).double(), ALWAYS)
    assert result.program is result.original
    assert why in missed(result)[0][1]


def test_a_transposed_convolution_is_left(rewritten: Any) -> None:
    model = two(nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    result = rewritten(shaken(model), torch.randn(2, 4, 5, 5).double(), ALWAYS)
    assert missed(result) == [("fuse-linear.row", "transposed convolutions are not fused")]


def test_low_precision_layout_and_trainability_are_kept() -> None:
    model = two(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3)).to(torch.bfloat16)
    model = model.to(memory_format=torch.channels_last)
    model[1].weight.requires_grad_(False)
    after = FuseLinear()(fp.capture(model.eval(), torch.randn(2, 4, 9, 9, dtype=torch.bfloat16)))
    weight = after.tensors()["1.weight"]
    assert weight.dtype == torch.bfloat16
    assert not weight.requires_grad
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_train_mode_and_a_batch_of_any_size(rewritten: Any) -> None:
    model = two(nn.Linear(4, 8), nn.Linear(8, 4)).double()
    result = rewritten(model, torch.randn(2, 4).double(), "fuse-linear", train=True)
    assert layers(result.program) == 1
    assert result.program(torch.randn(7, 4).double()).shape == (7, 4)


def test_latency_decides_where_asked() -> None:
    program = fp.capture(two(nn.Linear(4, 512), nn.Linear(512, 4)), torch.randn(2, 4))
    result = run_pipeline(program, "fuse-linear{by=latency}")
    assert layers(result.program) == 1


def test_the_limit_leaves_out_single_rewrites() -> None:
    program = fp.capture(
        nn.Sequential(
            nn.Linear(4, 8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Linear(8, 4)
        ),
        torch.randn(2, 4),
    )
    assert run_pipeline(program, "fuse-linear", limit=0).program is program
    assert layers(run_pipeline(program, "fuse-linear", limit=1).program) == 3
    assert layers(run_pipeline(program, "fuse-linear").program) == 2
