"""Tests of fxprune.plan.parts: the parts of a chunk."""

from typing import Any

import torch
from torch import nn

import fxprune as fp
from fxprune.api import solved
from fxprune.plan.parts import equal_parts


class Halves(nn.Module):
    """As C2f of YOLO: one half goes on by itself, the other through a layer."""

    def __init__(self, parts: int = 2) -> None:
        super().__init__()
        self.parts = parts
        self.one, self.inner = nn.Linear(6, 8 * parts), nn.Linear(8, 8)
        self.two = nn.Linear(8 * parts + 8, 6)

    def forward(self, x: torch.Tensor) -> Any:
        y = list(self.one(x).relu().chunk(self.parts, -1))
        return self.two(torch.cat([*y, y[-1] + self.inner(y[-1])], -1))


class Coupled(nn.Module):
    """Both halves are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> Any:
        a, b = self.one(x).chunk(2, -1)
        return self.two(a * b.sigmoid())


def ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    program = fp.capture(model.eval(), torch.randn(2, 6))
    return equal_parts(program, solved(program), fp.groups(program)).ties


def test_each_part_is_tied_to_the_others() -> None:
    (tie,) = ties(Halves())
    assert set(tie) == {"one.weight:0", "one.weight:0#2"}


def test_parts_that_are_one_group_together_are_left() -> None:
    assert ties(Halves(3)) == ()  # two of them only meet again in the concatenation


def test_parts_of_one_group_need_no_tie() -> None:
    assert ties(Coupled()) == ()


def test_what_is_pruned_by_default_can_be_written_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), Halves(), nn.Linear(6, 2)).eval()
    x = torch.randn(4, 3)
    outcome = fp.prune(model, x, keep=0.6)
    torch.testing.assert_close(fp.write_back(model, outcome.plan)(x), outcome.program(x))
