"""A timer that counts, so that plans for a latency can be tested without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from fxprune.cost.macs import example_sizes
from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program
from fxprune.latency.call import Call, Shaped
from fxprune.report.latency import Latency


class CountedTimer:
    """Milliseconds by arithmetic: products take their MACs at widths rounded up, others what they read.

    Args:
        block: to what widths are rounded up, as on a machine that computes so many channels at once.
        overhead: what every comparison of programs adds, as a share of the first program: it is in no operator.

    Attributes:
        asked: how many operators, runs and comparisons were timed.
    """

    def __init__(self, block: int = 1, overhead: float = 0.0) -> None:
        self.block, self.overhead = block, overhead
        self.asked = [0, 0, 0]

    def operator(self, call: Call) -> float:
        """Milliseconds of a call."""
        self.asked[0] += 1
        shapes: list[Sequence[int]] = []
        map_aggregate((call.args, dict(call.kwargs)), lambda x: _shape(x, shapes))
        return self._cost(shapes)

    def nodes(self, program: Program) -> list[float]:
        """Milliseconds of each node of a program."""
        self.asked[1] += 1
        return self._nodes(program)

    def compare(self, before: Program, after: Program) -> Latency:
        """The sums over the nodes of two programs, with the overhead."""
        self.asked[2] += 1
        first, second = sum(self._nodes(before)), sum(self._nodes(after))
        more = self.overhead * first
        a, b = first + more, second + more
        return Latency(a, b, b / a, 1, 1)

    def _nodes(self, program: Program) -> list[float]:
        sizes = example_sizes(program)

        def shapes(node: fx.Node) -> list[Sequence[int]]:
            values = (n.meta.get("val") for n in node.all_input_nodes)
            return [sizes.shape(v) for v in values if isinstance(v, torch.Tensor)]

        return [self._cost(shapes(n)) if is_operator(n) else 0.0 for n in program.nodes]

    def _cost(self, shapes: Sequence[Sequence[int]]) -> float:
        weight = shapes[1] if len(shapes) > 1 else ()
        if len(weight) in (2, 4) and len(shapes[0]) == len(weight):
            x, (out, into, *window) = shapes[0], weight
            places = prod(x) // x[1]
            return 1e-6 * places * self._rounded(out) * self._rounded(into) * prod(window)
        return 1e-7 * sum(map(prod, shapes))

    def _rounded(self, width: int) -> int:
        return -(-width // self.block) * self.block


def _shape(value: Any, found: list[Sequence[int]]) -> Any:
    if isinstance(value, Shaped):
        found.append(value.shape)
    return value
