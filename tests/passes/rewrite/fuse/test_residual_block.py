"""A residual block without activations becomes one convolution, in the steps that method 4 takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune_passes.rewrite.fuse_linear import FuseLinear
from fxprune_passes.rewrite.layers.affine_layer import read_layer
from fxprune_passes.rewrite.move_padding import MovePadding


class Block(nn.Module):
    """A basic block of ResNet-20 whose inner activation has become the identity."""

    def __init__(self, inputs: int, outputs: int, stride: int, last: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential()
        if stride > 1 or inputs != outputs:
            norm = nn.BatchNorm2d(outputs)
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)))) + self.skip(x)
        return y.relu() if self.last else y


def used(model: nn.Module, x: Tensor) -> Program:
    """Trained a little in float64, so that no norm is that of a new network."""
    torch.manual_seed(0)
    model.double().train()
    for _ in range(3):
        model(x + torch.randn_like(x))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return fp.capture(model.train(), x)


def convolutions(program: Program) -> list[tuple[int, ...]]:
    layers = [x for n in program.nodes if (x := read_layer(n)) is not None]
    return [layer.geometry.kernel for layer in layers]


def folded(program: Program, **options: Any) -> Program:
    fuse: Any = FuseLinear(**options)
    return run_pipeline(program.eval(), ["fold-batchnorm", fuse]).program


@pytest.mark.parametrize(
    ("block", "kernel"),
    [((4, 4, 1, True), (5, 5)), ((4, 8, 2, True), (7, 7)), ((4, 6, 1, False), (5, 5))],
)
def test_a_block_becomes_one_convolution(block: Any, kernel: tuple[int, ...]) -> None:
    x = torch.randn(2, 4, 16, 16).double()
    program = run_pipeline(used(Block(*block), x), [MovePadding(when="always")]).program
    assert program.training
    small = folded(program, when="always")
    assert convolutions(small) == [kernel]
    assert not any(n.op == "call_function" and "add" in str(n.target) for n in small.nodes)
    torch.testing.assert_close(small(x), program.eval()(x), rtol=1e-10, atol=1e-10)


def test_without_moved_padding_the_block_stays() -> None:
    x = torch.randn(2, 4, 16, 16).double()
    small = folded(used(Block(4, 4, 1, True), x), when="always")
    assert convolutions(small) == [(3, 3), (3, 3)]


def test_blocks_in_a_row_lose_a_layer_each() -> None:
    """The stem, three blocks and a head: the sums and activations keep the blocks apart."""
    x = torch.randn(2, 3, 12, 12).double()
    blocks = (Block(4, 4, 1, True), Block(4, 4, 1, True), Block(4, 8, 2, True))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *blocks, *head)
    program = run_pipeline(used(model, x), [MovePadding(when="always")]).program
    small = folded(program, when="always")
    assert len(convolutions(program)) == 9
    assert len(convolutions(small)) == 5  # the projection and a layer of each block are gone
    torch.testing.assert_close(small(x), program.eval()(x), rtol=1e-10, atol=1e-10)
