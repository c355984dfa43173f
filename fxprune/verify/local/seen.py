"""What the values of a program look like, from one run of it, and random values that look like them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import fx

from fxprune.graph.sizes import Sizes
from fxprune.torch_private import symbols_of

Tensor = torch.Tensor
Shape = tuple[int, ...]
_POOL = (1 << 20) + 7  # random numbers that are drawn once; larger values repeat them
_SAMPLE = 1 << 15  # numbers of a value of which mean and spread are taken


@dataclass(frozen=True)
class Look:
    """What one value looks like.

    Attributes:
        shape: its sizes in the run.
        low: the smallest number.
        high: the largest number.
        mean: the mean of the numbers, or of some of them.
        spread: their standard deviation.
        value: the value itself, where no other may stand for it: one that is no floating-point number.
    """

    shape: Shape
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    spread: float = 1.0
    value: Any = None

    @classmethod
    def of(cls, value: Any) -> Look | None:
        """The look of a value; None for one of which no other can be made."""
        if not isinstance(value, Tensor):
            return cls((), value=value) if isinstance(value, int | float) else None
        if value.layout != torch.strided or value.is_quantized or value.is_nested:
            return None
        shape = tuple(value.shape)
        if not value.is_floating_point() or not value.numel():
            return cls(shape, value=value.detach().clone())
        low, high = (float(x) for x in torch.aminmax(value.detach()))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # a mask of -inf, or NaN
            return cls(shape, value=value.detach().clone())
        numbers = value.detach().reshape(-1)
        some = numbers[:: max(1, numbers.numel() // _SAMPLE)].double()
        return cls(shape, low, high, float(some.mean()), float(some.std(correction=0)))


@dataclass
class Seen:
    """What the values of programs look like, by the names of their nodes.

    Attributes:
        lengths: of the free sizes in the run that was seen, by name.
        seed: of random values.
    """

    lengths: Mapping[str, int]
    seed: int = 0
    _looks: dict[str, Look | None] = field(default_factory=dict)
    _drawn: int = 0

    def note(self, node: fx.Node, value: Any) -> None:
        """Remembers what the value of a node looks like."""
        if node.op not in ("get_attr", "output"):
            self._looks[node.name] = Look.of(value)

    def note_new(self, node: fx.Node, value: Any) -> None:
        """The same for a node of another program, where none of its name was seen."""
        if node.name not in self._looks:
            self.note(node, value)

    def knows(self, node: fx.Node) -> bool:
        """Whether the value of a node was seen and another one can be made."""
        return self._looks.get(node.name) is not None

    def shape(self, node: fx.Node, lengths: Mapping[str, int]) -> Shape | None:
        """The sizes of the value of a node at some lengths of the free sizes; None where they are not known."""
        look = self._looks[node.name]
        if look is None or lengths == self.lengths:
            return None if look is None else look.shape
        return shape_at(node.meta.get("val"), lengths)

    def draw(self, node: fx.Node, lengths: Mapping[str, int], shape: Shape | None) -> Any:
        """A random value that looks like that of a node; None where no such value can be made.

        Args:
            node: whose value was seen.
            lengths: of the free sizes, by name.
            shape: its sizes, if it is a tensor.

        Returns:
            In float64 where the value is a floating-point tensor; integers and truth values are those seen, again
            where an axis is longer.
        """
        look = self._looks[node.name]
        assert look is not None, node.name
        if not isinstance(look.value, Tensor) and look.value is not None:
            return _number_at(node.meta.get("val"), look.value, lengths)
        if shape is None:
            return None
        return self._random(look, shape) if look.value is None else _again(look.value, shape)

    def _random(self, look: Look, shape: Shape) -> Tensor:
        end = self._drawn + prod(shape)
        pool = self._pool if end <= _POOL else self._pool.repeat(-(-end // _POOL))
        numbers = pool[self._drawn : end].view(shape)
        self._drawn = (end + 17) % _POOL
        if look.low == look.high:  # what is constant hides what is done to it
            return numbers.clone()
        value = numbers * look.spread + look.mean
        signed = look.low < 0 < look.high
        return value if signed else value.clamp_(look.low, look.high)

    @cached_property
    def _pool(self) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed)
        return torch.randn(_POOL, generator=rng, dtype=torch.float64)


def shape_at(value: Any, lengths: Mapping[str, int]) -> Shape | None:
    """The sizes of a value at some lengths of the free sizes; None where they depend on more."""
    if not isinstance(value, Tensor):
        return None
    found = [_size_at(n, lengths) for n in value.shape]
    return None if None in found else tuple(n for n in found if n is not None)


def _size_at(size: Any, lengths: Mapping[str, int]) -> int | None:
    if isinstance(size, torch.SymInt):
        if not lengths.keys() >= symbols_of(size).keys():
            return None
        return Sizes(lambda _, symbol: lengths[symbol.name]).number(size)
    return int(size)


def _number_at(known: Any, seen: Any, lengths: Mapping[str, int]) -> Any:
    """A number that depends on sizes alone, at some lengths; one that does not, as it was."""
    return _size_at(known, lengths) if isinstance(known, torch.SymInt) else seen


def _again(value: Tensor, shape: Shape) -> Tensor | None:
    """The value with its entries again along axes that are longer, and with fewer of them along shorter ones."""
    if len(shape) != value.dim() or 0 in value.shape:
        return value.clone() if tuple(value.shape) == shape else None
    for axis, n in enumerate(shape):
        if n != value.shape[axis]:
            places = torch.arange(n, device=value.device) % value.shape[axis]
            value = value.index_select(axis, places)
    return value.double() if value.is_floating_point() else value.clone()
