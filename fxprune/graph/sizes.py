"""Sizes of captured tensors with a number in place of every symbolic length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fxprune.torch_private import static_size

PRIMES = (31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)


class Sizes:
    """Turns symbolic lengths into integers.

    Args:
        choose: the number for a symbol, given how many symbols came before it and the symbol itself.
    """

    def __init__(self, choose: Callable[[int, Any], int]) -> None:
        self._choose = choose
        self._symbols: dict[Any, int] = {}
        self._values: dict[Any, int] = {}

    @classmethod
    def of_primes(cls) -> Sizes:
        """A prime of its own for every symbol: products of sizes cannot be mistaken for one another."""
        return cls(lambda count, _: PRIMES[count % len(PRIMES)])

    @classmethod
    def of_inputs(cls, values: Iterable[Any]) -> Sizes:
        """Primes as in `of_primes`; axis 0 of every input is the batch, so one number for all."""
        sizes = cls.of_primes()
        for value in values:
            batch: Any = value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else 1
            if is_symbolic(batch):
                sizes._symbols.update(dict.fromkeys(batch.node.expr.free_symbols, PRIMES[0]))
        return sizes

    @classmethod
    def of_symbols(cls, values: Mapping[Any, int]) -> Sizes:
        """Known numbers for known symbols; a symbol that depends on data counts as 1."""
        return cls(lambda _, symbol: values.get(symbol, 1))

    def number(self, size: Any) -> int:
        """The integer for an int or SymInt."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if expression not in self._values:
            for symbol in sorted(expression.free_symbols, key=str):
                if symbol not in self._symbols:
                    self._symbols[symbol] = self._choose(len(self._symbols), symbol)
            self._values[expression] = int(expression.xreplace(self._symbols))
        return self._values[expression]

    def shape(self, value: Any) -> list[int]:
        """The sizes of a (fake) tensor."""
        return [self.number(s) for s in value.shape]


def shapes(sizes: Sizes, value: Any) -> Any:
    """Sizes of a tensor, or a list of those of several; None where nothing is a tensor."""
    if isinstance(value, torch.Tensor):
        return sizes.shape(value)
    if isinstance(value, list | tuple):
        return [shapes(sizes, v) for v in value]
    return None


def symbolic_axes(value: Any) -> frozenset[int]:
    """Axes of a tensor whose length may differ from run to run."""
    if not isinstance(value, torch.Tensor):
        return frozenset()
    return frozenset(i for i, s in enumerate(value.shape) if static_size(s) is None)


def is_symbolic(value: Any) -> bool:
    """Whether a node's value is a length known at run time only."""
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
