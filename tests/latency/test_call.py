"""Calls at other widths are those of the network that was made smaller."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import fxprune as fp
from fxprune.api import solved
from fxprune.cost.macs import example_sizes
from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program
from fxprune.latency.call import Call, CallTemplate, Shaped
from fxprune.latency.widths import Widths


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, a concatenation, and a linear layer on flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 32)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(48 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.cat([self.norm(self.grouped(x)), self.deep(x)], 1)
        return self.head(nn.functional.adaptive_avg_pool2d(both, 2).flatten(1))


class Attention(nn.Module):
    """Heads of an attention, behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        parts = self.qkv(self.norm(x)).view(b, t, 3, 4, 6).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.head((x + self.out(mixed.transpose(1, 2).reshape(b, t, 24))).mean(1))


def removed_half(program: Program) -> np.ndarray:
    """A mask in which every group loses the first half of its units."""
    axes = solved(program)
    gone = np.zeros(axes.n_units, bool)
    for group in fp.groups(program):
        gone[group.units[: len(group) // 2]] = True
    return gone


def calls(program: Program, gone: np.ndarray) -> list[str]:
    """What every operator is called with once units are removed."""
    axes, sizes = solved(program), example_sizes(program)
    widths = Widths(axes)
    nodes = [n for n in program.nodes if is_operator(n)]
    templates = [CallTemplate(n, axes, widths, sizes) for n in nodes]
    left = widths.left(gone)
    shares = {i: n / len(units) for i, (n, units) in enumerate(zip(left, widths.sets, strict=True))}
    # a smaller program does not know the order of axes in memory, and spells out a scale that was implied
    untimed = r" order [\d,]+|, scale=[\d.]+"
    return [re.sub(untimed, "", t.at(shares).key) for t in templates]


@pytest.mark.parametrize(
    ("make", "shape"), [(Grouped, (2, 3, 4, 4)), (Attention, (2, 7, 24))], ids=["maps", "heads"]
)
def test_a_call_at_half_the_units_is_that_of_the_smaller_network(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    program = fp.capture(make().eval(), torch.randn(shape))
    gone = removed_half(program)
    assert gone.any()
    small = fp.shrink(program, fp.plan(program, np.flatnonzero(gone).tolist()))
    found = calls(program, gone)
    assert found != calls(program, np.zeros_like(gone))
    assert found == calls(small, np.zeros(solved(small).n_units, bool))


def test_random_tensors_are_laid_out_as_told() -> None:
    like = Shaped((2, 3, 4), (0, 2, 1), (0,), torch.float32, torch.device("cpu"))
    made = like.random()
    assert made.shape == (2, 3, 4)
    assert made.stride() == (0, 1, 3)
    counts = Shaped((3,), (0,), (), torch.int64, torch.device("cpu"))
    table = Shaped((5, 2), (0, 1), (), torch.float32, torch.device("cpu"))
    call = Call(torch.ops.aten.embedding.default, (table, counts), ())
    args, kwargs = call.tensors()
    assert call.target(*args, **kwargs).shape == (3, 2)
