"""Which axes of a program's inputs are free, and which lengths its graph holds for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import gcd
from typing import Any

import torch
from torch import fx

from fxprune.graph.inputs import GUARDS
from fxprune.torch_private import multiple, static_size, symbols_of

_SCANNED = 512  # lengths that are tried one by one
_LARGEST = 1 << 20


@dataclass(frozen=True)
class FreeAxis:
    """The lengths that an axis may have.

    Attributes:
        size: the name of its length; axes with one name are equally long, but for `factor`.
        factor: the length is a multiple of the named one.
        least: the smallest length, where those of other axes are as in the example.
        most: the largest; None where there is no limit.
        step: what the lengths differ by.
        example: its length in the example.
    """

    size: str
    factor: int
    least: int
    most: int | None
    step: int
    example: int

    def __str__(self) -> str:
        bound = f"{self.least} to {self.most}" if self.most else f"from {self.least}"
        step = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.size}: {bound}{step}"


def free_axes(graph: fx.Graph) -> dict[str, dict[int, FreeAxis]]:
    """Returns the free axes of each input of a captured graph, by its name and their numbers."""
    conditions = Conditions(graph)
    found: dict[str, dict[int, FreeAxis]] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if static_size(size) is None:
                found.setdefault(str(node.target), {})[axis] = _axis(size, conditions)
    return found


def _axis(size: Any, conditions: Conditions) -> FreeAxis:
    known = multiple(size)
    if known is None or known[0] not in conditions.example:
        return FreeAxis(str(size), 1, 1, None, 1, 1)
    name, factor = known
    example = conditions.example[name]
    lengths = [n for n in range(1, example + _SCANNED) if conditions.hold({name: n})] or [example]
    step = reduce(gcd, (b - a for a, b in pairwise(lengths)), 0) or 1
    most = lengths[-1]
    last: int | None = most * factor
    if most + step >= example + _SCANNED:
        last = _limit(name, most, step, conditions, factor)
    return FreeAxis(name, factor, lengths[0] * factor, last, step * factor, example * factor)


def _limit(name: str, known: int, step: int, conditions: Conditions, factor: int) -> int | None:
    """The largest length that holds, given one that does; None where very large ones do."""
    good, bad = known, known + step * (_LARGEST // step)
    if conditions.hold({name: bad}):
        return None
    while bad - good > step:
        middle = good + (bad - good) // (2 * step) * step
        good, bad = (middle, bad) if conditions.hold({name: middle}) else (good, middle)
    return good * factor


class Conditions:
    """The conditions on the free sizes of a graph.

    Attributes:
        example: the free sizes of the example, by name.
    """

    def __init__(self, graph: fx.Graph) -> None:
        places = graph.find_nodes(op="placeholder")
        self.example: dict[str, int] = {}
        self._symbols: dict[str, Any] = {}
        for size in _sizes(n.meta.get("val") for n in places):
            for name, facts in symbols_of(size).items():
                if facts.hint is not None:
                    self.example.setdefault(name, facts.hint)
            self._symbols |= {s.name: s for s in size.node.expr.free_symbols}
        self._guards = [g.node.expr for n in places for g in n.meta.get(GUARDS, ())]

    def hold(self, changed: Mapping[str, int]) -> bool:
        """Whether all hold where some sizes differ from the example's."""
        values = {self._symbols[k]: n for k, n in {**self.example, **changed}.items()}
        for guard in self._guards:
            if not guard.free_symbols.isdisjoint(self._symbols[k] for k in changed):
                try:
                    if guard.xreplace(values) == False:  # noqa: E712  (of sympy)
                        return False
                except ZeroDivisionError:
                    return False
        return True

    def another(self, fixed: Mapping[str, int], steps: Mapping[str, int]) -> dict[str, int]:
        """Another length for every free size, near the example's, for which the graph holds.

        Args:
            fixed: the lengths of some sizes.
            steps: what lengths of others have to differ by, where it is not 1.
        """
        chosen = dict(fixed)
        for name, n in self.example.items():
            step = steps.get(name, 1)
            for other in _near(n, step):
                if name not in chosen and self.hold({**chosen, name: other}):
                    chosen[name] = other
        return chosen


def _near(n: int, step: int) -> Sequence[int]:
    down = range(n - step, max(n // 2, 1), -step)
    return [*down, *range(n + step, n + step + _SCANNED, step)]


def _sizes(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if static_size(size) is None:
                yield size
