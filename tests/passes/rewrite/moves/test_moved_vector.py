"""Tests of scales that reach a layer through what moves them: gates, constants, batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result
from fxprune_passes.rewrite.layers.affine_layer import read_layer

Rewritten = Callable[..., Result]


class ConvNeXt(nn.Module):
    """A block of ConvNeXt: linear layers on the last axis, a layer scale behind the permutation."""

    def __init__(self, one: bool = False) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.wide, self.narrow = nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma = nn.Parameter(torch.randn(1 if one else 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2) * self.gamma


IMAGE = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0)).double()


def names(program: Program) -> set[str]:
    return {str(n.target).split(".")[1] for n in program.nodes if n.op == "call_function"}


@pytest.mark.parametrize("one", [False, True])
def test_a_layer_scale_goes_through_a_permutation(rewritten: Rewritten, one: bool) -> None:
    result = rewritten(ConvNeXt(one).double(), IMAGE, "fuse-linear")
    assert "mul" not in names(result.program)
    assert "gamma" not in result.program.tensors()
    assert [r.what for r in result.select("fuse-linear", "applied")] == ["folded into linear_1"]


@pytest.mark.parametrize("scope", ["block", "unit"])
def test_gates_go_through_layer_scale_and_permutation(rewritten: Rewritten, scope: str) -> None:
    program = fp.capture(ConvNeXt().double(), IMAGE)
    result = run_pipeline(
        program, f"insert-gates{{scope={scope} kind=soft}} | set-gates{{value=0.3}}"
    )
    closed = result.program
    assert gates(closed)
    after = run_pipeline(closed, "absorb-gates").program
    assert not gates(after)
    torch.testing.assert_close(after(IMAGE), closed(IMAGE), rtol=1e-10, atol=1e-10)
    assert after.tensors()["gamma"] is closed.tensors()["gamma"]


class Moves(nn.Module):
    """A scale and a shift of channels between two layers, with something in between."""

    def __init__(
        self,
        first: nn.Module,
        between: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        behind: Callable[[Tensor], Tensor],
        second: nn.Module,
    ) -> None:
        super().__init__()
        self.first, self.between, self.behind, self.second = first, between, behind, second
        self.gamma, self.beta = (nn.Parameter(torch.randn(shape)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.behind(self.between(self.first(x)) * self.gamma + self.beta))


def same(x: Tensor) -> Tensor:
    return x


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat((torch.relu(a), b.tanh()), 1)


def heads(x: Tensor) -> Tensor:
    return torch.unflatten(x, 1, (2, 3)).transpose(1, 2)


CASES: dict[str, tuple[Any, ...]] = {
    "flatten behind": (nn.Sigmoid(), same, (6, 1, 1), lambda x: x.flatten(1), nn.Linear(150, 4)),
    "pool behind": (
        nn.Sigmoid(), same, (6, 1, 1), lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), nn.Linear(6, 4),
    ),
    "mean behind": (nn.Sigmoid(), same, (6, 1, 1), lambda x: x.mean((2, 3)), nn.Linear(6, 4)),
    "permute behind": (nn.Sigmoid(), same, (6, 1, 1), lambda x: x.permute(0, 2, 3, 1), nn.Linear(6, 4)),
    "cat behind": (nn.Sigmoid(), same, (6, 1, 1), lambda x: torch.cat((x * 0 + 1, x), 1)[:], nn.Sigmoid()),
    "flatten before": (nn.Conv2d(6, 6, 5), lambda x: x.flatten(1), (6,), torch.relu, nn.Linear(6, 4)),
    "transpose before": (nn.Linear(5, 7), lambda x: x.transpose(1, 3), (7, 1, 1), torch.relu, nn.Sigmoid()),
    "split before": (
        nn.Conv2d(6, 12, 1), lambda x: x.split([4, 8], 1)[1], (8, 1, 1), torch.relu, nn.Conv2d(8, 2, 1),
    ),
    "slice before": (nn.Conv2d(6, 8, 1), lambda x: x[:, :, 1:], (8, 1, 1), torch.relu, nn.Sigmoid()),
    "slice behind": (nn.Sigmoid(), same, (6, 1, 1), lambda x: x[..., :3], nn.Conv2d(6, 2, 1)),
    "heads before": (nn.Conv2d(6, 6, 1), heads, (2, 1, 1), same, nn.Sigmoid()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_scales_and_shifts_move_with_the_numbers(rewritten: Rewritten, case: str) -> None:
    torch.manual_seed(0)
    model = Moves(*CASES[case]).double()
    result = rewritten(model, IMAGE, "fuse-linear")
    stays = case == "cat behind"  # no layer is there
    assert ("gamma" in result.program.tensors()) == stays
    assert ("beta" in result.program.tensors()) == stays


@pytest.mark.parametrize("case", [c for c in CASES if c.endswith("behind")])
def test_batch_norm_goes_behind_a_move(rewritten: Rewritten, case: str) -> None:
    torch.manual_seed(0)
    _, _, _, behind, second = CASES[case]
    norm = nn.BatchNorm2d(6)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    model = Moves(nn.Sigmoid(), same, (), behind, second)
    model.between = norm
    model.gamma, model.beta = (nn.Parameter(torch.tensor(v)) for v in (1.5, 0.25))
    result = rewritten(model.double(), IMAGE, "fuse-linear | fold-batchnorm")
    assert ("batch_norm" in names(result.program)) == (case == "cat behind")


class Levit(nn.Module):
    """Linear, batch norm over flattened tokens, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.relu(self.norm(y.flatten(0, 1)).reshape_as(y))


def test_batch_norm_goes_through_flattened_tokens(rewritten: Rewritten) -> None:
    x = torch.randn(2, 7, 5).double()
    result = rewritten(Levit().double(), x, "fold-batchnorm")
    assert "batch_norm" not in names(result.program)
    assert result.program(torch.randn(4, 7, 5).double()).shape == (4, 7, 8)


class Segments(nn.Module):
    """A batch that is viewed as pairs: half of it is no prime's half."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.gamma = nn.Linear(4, 6), nn.Parameter(torch.randn(6))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).view(x.shape[0] // 2, *self.shape)
        return torch.relu(y * self.gamma)


@pytest.mark.parametrize(("shape", "goes"), [((2, 6), True), ((2, 1, 6), True), ((2, 2, 3), False)])
def test_a_scale_goes_through_a_view_of_part_of_the_batch(
    rewritten: Rewritten, shape: tuple[int, ...], goes: bool
) -> None:
    model = Segments(shape)
    model.gamma = nn.Parameter(torch.randn(shape[-1]))
    result = rewritten(model.double(), torch.randn(4, 4).double(), "fuse-linear")
    assert ("gamma" in result.program.tensors()) != goes
    if goes:
        assert result.steps[0].checks[0].batches == (4, 6)


def test_a_padded_average_takes_a_scale_through_and_no_shift(rewritten: Rewritten) -> None:
    pool = nn.AvgPool2d(3, padding=1)
    model = Moves(nn.Conv2d(6, 6, 1), pool, (6, 1, 1), torch.relu, nn.Sigmoid())
    result = rewritten(model.double(), IMAGE, "fuse-linear")
    assert {"gamma", "beta"} <= set(result.program.tensors())


class Glu(nn.Module):
    """Two parts of one layer, one with a gate, multiplied; dense behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(4, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, -1)
        return self.out(a * torch.sigmoid(b))


def test_unit_gates_go_through_products_and_splits() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4).double()
    closed = run_pipeline(
        fp.capture(Glu().double(), x), "insert-gates{scope=unit kind=soft} | set-gates{value=-0.6}"
    ).program
    after = run_pipeline(closed, "absorb-gates").program
    assert gates(closed)
    assert not gates(after)
    torch.testing.assert_close(after(x), closed(x), rtol=1e-10, atol=1e-10)
    assert sum(read_layer(n) is not None for n in after.nodes) == 2
