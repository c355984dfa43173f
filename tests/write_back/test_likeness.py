"""Tests of fxprune.write_back.likeness: numbers that are the same as a size in all modules of their class."""

from typing import Any

import torch
from torch import nn

import fxprune as fp
from fxprune.write_back.likeness import sizes_like, sizes_of
from fxprune.write_back.slots import Slot, find_slots


class Block(nn.Module):
    """Two branches that become one convolution, as those of MobileOne do."""

    def __init__(self, ins: int, outs: int, groups: int = 1) -> None:
        super().__init__()
        self.in_chs, self.out_chs, self.groups, self.marks = ins, outs, groups, 12
        self.conv = nn.Conv2d(ins, outs, 3, padding=1, groups=groups, bias=False)
        self.identity = nn.BatchNorm2d(ins) if ins == outs else None
        self.merged: nn.Conv2d | None = None

    def forward(self, x: torch.Tensor) -> Any:
        if self.merged is not None:
            return self.merged(x).relu()
        y = self.conv(x)
        return (y if self.identity is None else y + self.identity(x)).relu()

    def reparameterize(self) -> None:
        merged = nn.Conv2d(self.in_chs, self.out_chs, 3, padding=1, groups=self.groups)
        weight, bias = self.conv.weight.detach().clone(), torch.zeros(self.out_chs)
        if (norm := self.identity) is not None:
            size = self.in_chs // self.groups
            one = torch.zeros(self.in_chs, size, 3, 3)
            for i in range(self.in_chs):
                one[i, i % size, 1, 1] = 1
            factor = norm.weight.detach() / (norm.get_buffer("running_var") + norm.eps).sqrt()
            weight += one * factor.reshape(-1, 1, 1, 1)
            bias += norm.bias.detach() - norm.get_buffer("running_mean") * factor
        merged.weight, merged.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.merged = merged


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    several = Block(3, 12), Block(12, 12, 12), Block(12, 16), Block(16, 16)
    return nn.Sequential(*several, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


def test_numbers_of_a_later_merge_follow() -> None:
    model, x = blocks(), torch.randn(2, 3, 8, 8)
    outcome = fp.prune(model, x, keep=0.5, fits=model)
    smaller: Any = outcome.written
    assert smaller[1].groups == smaller[1].in_chs == smaller[1].conv.groups < 12
    for block in smaller[:4]:
        assert (block.in_chs, block.out_chs) == (block.conv.in_channels, block.conv.out_channels)
        block.reparameterize()
    torch.testing.assert_close(smaller(x), outcome.program(x))
    undecided = [r for r in outcome.remarks if r.code == "write-back.number-undecided"]
    assert [r.where for r in undecided] == ["0.marks"]  # the same in all, as much else


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.depth = width, width // 2
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)


def found(model: nn.Module, name: str, now: nn.Module) -> dict[Slot, int]:
    slots = [s for s in find_slots(model) if s.trail == (name,)]
    return sizes_like(slots, sizes_of(model), sizes_of(now))


def test_what_may_be_one_of_two_sizes_is_not_decided() -> None:
    before, now = nn.Sequential(Layer(4), Layer(6)), nn.Sequential(Layer(4), Layer(6))
    assert set(found(before, "width", now).values()) == {4, 6}
    now[0].up = nn.Linear(4, 3)
    now[0].down = nn.Linear(3, 4)
    assert not found(before, "width", now)


def test_what_is_the_same_as_nothing_is_not_decided() -> None:
    model = nn.Sequential(Layer(4), Layer(6))
    assert not found(model, "depth", model)


def test_one_value_is_no_evidence() -> None:
    model = nn.Sequential(Layer(4), Layer(4))
    assert not found(model, "width", model)
