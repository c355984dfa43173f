"""Tests of fuse-linear where a linear layer reads a flattened or averaged map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.cost.macs import node_macs
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result
from fxprune_passes.rewrite.layers.affine_layer import read_layer

Rewritten = Callable[..., Result]
ALWAYS = "fuse-linear{when=always}"
IMAGE = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(0)).double()


def layers(program: Program) -> list[str]:
    return [str(n.target).split(".")[1] for n in program.nodes if read_layer(n) is not None]


class Mean(nn.Module):
    def __init__(self, dims: tuple[int, ...], keepdim: bool = False) -> None:
        super().__init__()
        self.dims, self.keepdim = dims, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, keepdim=self.keepdim)


class Permute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


MAPS: dict[str, tuple[nn.Module, ...]] = {
    "whole kernel": (nn.Conv2d(4, 6, (9, 8)),),
    "padded": (nn.Conv2d(4, 6, 3, padding=1),),
    "strided, grouped, dilated": (nn.Conv2d(4, 6, 3, (2, 1), (1, 0), (1, 2), groups=2, bias=False),),
    "depthwise": (nn.Conv2d(4, 4, 5, groups=4),),
    "pooled": (nn.Conv2d(4, 6, 3), nn.AvgPool2d(2)),
    "adaptive": (nn.Conv2d(4, 6, 3, padding=1), nn.AdaptiveAvgPool2d((3, 2))),
    "mean": (nn.Conv2d(4, 6, 3, padding=1), Mean((2, 3))),
    "permuted": (nn.Conv2d(4, 6, 3), nn.Dropout(), Permute()),
}  # fmt: skip


@pytest.mark.parametrize("case", MAPS)
def test_a_linear_layer_behind_a_map_takes_up_the_layer_before(
    rewritten: Rewritten, case: str
) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        features = nn.Sequential(*MAPS[case], nn.Flatten()).double()(IMAGE).shape[1]
    model = nn.Sequential(*MAPS[case], nn.Flatten(), nn.Linear(features, 5)).double()
    result = rewritten(model, IMAGE, ALWAYS, sizes="batch")
    assert layers(result.program) == ["linear"]
    assert result.program(torch.randn(7, 4, 9, 8).double()).shape == (7, 5)
    names = {n.rpartition(".")[0] for n in result.program.tensors()}
    assert names == {str(len(model) - 1)}


def test_the_cost_decides(rewritten: Rewritten) -> None:
    """A whole kernel into few outputs is cheaper as one; a small one on a large map is not."""
    cheap = nn.Sequential(nn.Conv2d(4, 6, (9, 8)), nn.Flatten(), nn.Linear(6, 5)).double()
    assert layers(rewritten(cheap, IMAGE, "fuse-linear").program) == ["linear"]
    dear = nn.Sequential(nn.Conv2d(4, 1, 3), nn.Flatten(), nn.Linear(42, 50)).double()
    result = rewritten(dear, IMAGE, "fuse-linear")
    assert layers(result.program) == ["conv2d", "linear"]
    (left,) = result.select("fuse-linear", "missed")
    assert (left.code, left.why[:26]) == ("fuse-linear.cost", "the fused layer would cost")


def test_rows_of_maps_and_a_head_become_one(rewritten: Rewritten) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1), nn.Flatten()),
        *(nn.Linear(126, 5), nn.Linear(5, 4)),
    ).double()
    assert layers(rewritten(model, IMAGE, f"fold-batchnorm | {ALWAYS}").program) == ["linear"]


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 1, 3), nn.Linear(42, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.head(y.flatten(1)), torch.relu(y)


class Shared(ReadTwice):
    def forward(self, x: Tensor) -> Any:
        y = nn.functional.pad(self.conv(torch.relu(self.conv(x).repeat(1, 4, 1, 1))), (1, 1, 1, 1))
        return self.head(y.flatten(1)) + self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("model", "why"), [(ReadTwice, "conv2d has 2 readers"), (Shared, "is read")]
)
def test_what_others_read_stays(rewritten: Rewritten, model: Any, why: str) -> None:
    result = rewritten(model().double(), IMAGE, ALWAYS)
    assert result.program is result.original
    assert any(why in r.why for r in result.select("fuse-linear", "missed"))


@pytest.mark.parametrize(
    ("layer", "pool"),
    [
        (nn.Conv2d(4, 16, 1), nn.AdaptiveAvgPool2d(1)),
        (nn.Conv2d(4, 16, 1, groups=2), nn.AvgPool2d(3, 2, ceil_mode=True)),
        (nn.Conv2d(4, 16, 1), Mean((2, 3))),
        (nn.Conv2d(4, 16, 1, groups=4), Mean((3,), keepdim=True)),
        (nn.Linear(8, 5), Mean((1, 2))),
    ],
)
def test_an_average_goes_before_a_layer_of_one_position(
    rewritten: Rewritten, layer: nn.Module, pool: nn.Module
) -> None:
    result = rewritten(nn.Sequential(layer, pool, nn.ReLU()).double(), IMAGE, "fuse-linear")
    (done,) = result.select("fuse-linear", "applied")
    assert done.code == "fuse-linear.pooled"
    before, after = (sum(node_macs(p).values()) for p in (result.original, result.program))
    assert after < before


@pytest.mark.parametrize(
    "model",
    [
        (nn.Conv2d(4, 16, 3), nn.AdaptiveAvgPool2d(1)),
        (nn.Conv2d(4, 16, 1), nn.AvgPool2d(2, padding=1)),
        (nn.Conv2d(4, 16, 1), nn.AvgPool2d(2, divisor_override=3)),
        (nn.Conv2d(4, 16, 1), nn.MaxPool2d(2)),
        (nn.Conv2d(4, 16, 1), Mean((1,), keepdim=True)),
        (nn.Conv2d(4, 16, 1), nn.AdaptiveAvgPool2d(12)),
    ],
)
def test_other_averages_stay_where_they_are(rewritten: Rewritten, model: Any) -> None:
    result = rewritten(nn.Sequential(*model).double(), IMAGE, "fuse-linear")
    assert result.program is result.original


def test_an_average_and_a_head_behind_a_projection_become_one_small_layer(
    rewritten: Rewritten,
) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    ).double()
    result = rewritten(model, IMAGE, "fuse-linear")
    assert layers(result.program) == ["linear"]
    assert result.program.tensors()["3.weight"].shape == (5, 4)


def test_a_limit_leaves_the_graph_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, (9, 8)), nn.Flatten(), nn.Linear(6, 5)).double()
    program = fp.capture(model, IMAGE)
    assert run_pipeline(program, ALWAYS, limit=0).program is program
