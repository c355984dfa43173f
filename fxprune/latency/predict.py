"""The latency of a program at any widths, predicted from times of its operators."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from math import prod

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.analysis.axes import Axes, BoolArray
from fxprune.cost.macs import example_sizes
from fxprune.errors import OptionError
from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program
from fxprune.importance.table import FloatArray
from fxprune.latency.call import CallTemplate
from fxprune.latency.table import LatencyTable, devices_of
from fxprune.latency.widths import Widths
from fxprune.torch_private import fake_mode_of

# Nodes that take less than this share of the whole, all together, keep their time at every width.
NEGLIGIBLE = 0.01


class Predicted:
    """The latency of a program after a removal: a sum over its nodes.

    Each node takes what it took in a run of the whole program, times the ratio of what its operator takes alone at the
    new widths and at the old ones: alone, an operator finds its operands in a nearer cache.

    Args:
        program: the network, which is timed in eval mode.
        axes: its labels.
        table: the times.

    Attributes:
        widths: the sets of units on which times depend.
        terms: the nodes whose times change.
        fixed: milliseconds of all others.
        before: milliseconds of the whole program, as the sum over its nodes.

    Raises:
        OptionError: the program cannot run, see `check_runs`.
    """

    def __init__(self, program: Program, axes: Axes, table: LatencyTable) -> None:
        check_runs(program)
        self.widths = Widths(axes)
        with _in_eval_mode(program):
            self._read(program, axes, table)

    def _read(self, program: Program, axes: Axes, table: LatencyTable) -> None:
        times = dict(zip(program.nodes, table.nodes(program), strict=True))
        self.before = sum(times.values())
        device, sizes = devices_of(program), example_sizes(program)
        templates = {n: CallTemplate(n, axes, self.widths, sizes) for n in _notable(times)}
        full = [len(units) for units in self.widths.sets]
        self.terms = tuple(
            NodeTime(times[node], template, full, table, device)
            for node, template in templates.items()
            if template.sets
        )
        self.fixed = self.before - sum(t.before for t in self.terms)

    def at(self, left: Sequence[int]) -> float:
        """Milliseconds where so many units of each set are left."""
        return self.fixed + sum(term.at(left) for term in self.terms)

    def total(self, gone: BoolArray) -> float:
        """Milliseconds once the units in the mask `gone`, `[n_units]`, are removed."""
        return self.at(self.widths.left(gone))

    def gradient(self, gone: BoolArray) -> FloatArray:
        """What removing each unit in addition saves, `[n_units]`, as a share of what a few removals save."""
        left = self.widths.left(gone)
        saved = np.zeros(len(gone))
        for number, units in enumerate(self.widths.sets):
            fewer = max(1, left[number] - max(1, len(units) // 8))
            if fewer >= left[number]:
                continue
            less = [*left[:number], fewer, *left[number + 1 :]]
            terms = (t for t in self.terms if number in t.sets)
            saved[units] += sum(t.at(left) - t.at(less) for t in terms) / (left[number] - fewer)
        saved[gone] = 0
        return saved


def check_runs(program: Program) -> None:
    """Refuses a program without data.

    Raises:
        OptionError: its tensors are fake, or on the meta device.
    """
    tensors = [*pytree.tree_leaves((program.args, program.kwargs)), *program.tensors().values()]
    found = [x for x in tensors if isinstance(x, torch.Tensor)]
    fake = fake_mode_of(found) is not None
    if fake or any(x.is_meta for x in found):
        raise OptionError(
            "the latency of a network without data cannot be measured",
            where="metric='latency'",
            why=f"its tensors are {'fake' if fake else 'on the meta device'}",
            do="load the network onto the device that it is to run on, or choose metric='macs'",
        )


@contextmanager
def _in_eval_mode(program: Program) -> Iterator[None]:
    before = program.training
    program.eval()
    try:
        yield
    finally:
        program.train(before)


def _notable(times: dict[fx.Node, float]) -> list[fx.Node]:
    """The calls of operators that take up the time, without the shortest ones; in order."""
    spare = NEGLIGIBLE * sum(times.values())
    short = set()
    for node in sorted(times, key=times.__getitem__):
        spare -= times[node]
        if spare < 0:
            break
        short.add(node)
    return [n for n in times if is_operator(n) and n not in short]


class NodeTime:
    """The time of a node at any widths, interpolated between those that are measured.

    Attributes:
        before: milliseconds in a run of the whole program.
        sets: the numbers of the sets of units on which it depends.
    """

    def __init__(
        self,
        before: float,
        template: CallTemplate,
        full: Sequence[int],
        table: LatencyTable,
        device: str,
    ) -> None:
        self.before, self.sets = before, template.sets
        self._template, self._table, self._device = template, table, device
        self._full = [full[s] for s in self.sets]
        self._grids = [measured_widths(n) for n in self._full]
        self._measured: dict[tuple[int, ...], float | None] = {}
        self._known: dict[tuple[int, ...], float] = {}

    def at(self, left: Sequence[int]) -> float:
        """Milliseconds where so many units of each set of the program are left."""
        return self._at(tuple([left[s] for s in self.sets]))

    def _at(self, own: tuple[int, ...]) -> float:
        if own not in self._known:
            alone, full = self._interpolated(own), self._point(tuple(self._full))
            share = prod(n / m for n, m in zip(own, self._full, strict=True))
            self._known[own] = self.before * (alone / full if alone and full else share)
        return self._known[own]

    def _interpolated(self, own: tuple[int, ...]) -> float | None:
        """Milliseconds of the operator alone; None where it cannot be measured."""
        corners = [_between(n, grid) for n, grid in zip(own, self._grids, strict=True)]
        total = 0.0
        for corner in product(*corners):
            found = self._point(tuple(n for n, _ in corner))
            if found is None:
                return None
            total += found * prod(weight for _, weight in corner)
        return total

    def _point(self, own: tuple[int, ...]) -> float | None:
        if own not in self._measured:
            shares = {s: n / m for s, n, m in zip(self.sets, own, self._full, strict=True)}
            call = self._template.at(shares)
            self._measured[own] = self._table.operator(call, self._device)
        return self._measured[own]


def measured_widths(full: int) -> list[int]:
    """The numbers of units, of so many, at which operators are measured: round ones, and the ends.

    >>> measured_widths(64)
    [1, 8, 16, 24, 32, 40, 48, 56, 64]
    """
    return sorted({1, *range(round_step(full), full, round_step(full)), full})


def round_step(full: int) -> int:
    """The distance of round numbers up to a number: a power of 2, so that there are 7 to 12 of them.

    >>> [round_step(n) for n in (8, 16, 24, 64, 96, 768, 2048)]
    [1, 2, 2, 8, 8, 64, 256]
    """
    step = 1
    while full / step > 12:
        step *= 2
    return step


def _between(number: int, grid: Sequence[int]) -> list[tuple[int, float]]:
    """The neighbours of a number in a grid, with their weights."""
    place = bisect_left(grid, number)
    if place < len(grid) and grid[place] == number:
        return [(number, 1.0)]
    low, high = grid[max(0, place - 1)], grid[min(place, len(grid) - 1)]
    weight = (number - low) / (high - low) if high > low else 0.0
    return [(low, 1 - weight), (high, weight)]
