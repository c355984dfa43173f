"""Sizes of captured tensors, with numbers in place of symbolic lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import fx

from fxprune.torch_private import static_size, symbols_of

PRIMES = (31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)


class Sizes:
    """Replaces symbolic lengths by integers.

    Args:
        choose: returns the number for a symbol, given how many symbols came before it and the symbol
            itself.
    """

    def __init__(self, choose: Callable[[int, Any], int]) -> None:
        self._choose = choose
        self._symbols: dict[Any, int] = {}
        self._values: dict[Any, int] = {}

    @classmethod
    def of_primes(cls) -> Sizes:
        """Gives every symbol its own prime, so that different products of sizes cannot coincide."""
        return cls(lambda count, _: PRIMES[count % len(PRIMES)])

    @classmethod
    def of_inputs(cls, values: Iterable[Any]) -> Sizes:
        """Gives one prime to axis 0 of all inputs, the batch, and to other free axes their lengths in the example.

        A network may take some lengths only, such as multiples of 32, and the batch may have any. A symbol of which
        neither is known gets a prime as in `of_primes`.
        """
        sizes = cls.of_primes()
        batch: set[Any] = set()
        for value in values:
            shape = value.shape if isinstance(value, torch.Tensor) else ()
            for axis, size in enumerate(cast("tuple[Any, ...]", shape)):
                if is_symbolic(size):
                    expression = size.node.expr
                    batch |= {expression} if axis == 0 and expression.is_Symbol else set()
                    for name, known in symbols_of(size).items():
                        symbol = next(s for s in expression.free_symbols if s.name == name)
                        if known.hint is not None:
                            sizes._symbols[symbol] = known.hint
        sizes._symbols.update(dict.fromkeys(batch, PRIMES[0]))
        return sizes

    @classmethod
    def of_graph(cls, graph: fx.Graph) -> Sizes:
        """Gives the symbols of a graph the numbers that `of_inputs` gives those of its inputs."""
        return cls.of_inputs(n.meta.get("val") for n in graph.find_nodes(op="placeholder"))

    @classmethod
    def of_symbols(cls, values: Mapping[Any, int]) -> Sizes:
        """Gives known symbols their values; a symbol that depends on data counts as 1."""
        return cls(lambda _, symbol: values.get(symbol, 1))

    def number(self, size: Any) -> int:
        """Returns the integer for an int or a SymInt."""
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
        """Returns the sizes of a tensor, fake or real."""
        return [self.number(s) for s in value.shape]


def shapes(sizes: Sizes, value: Any) -> Any:
    """Returns the sizes of a tensor, or a list of sizes for several tensors; None if there is no tensor."""
    if isinstance(value, torch.Tensor):
        return sizes.shape(value)
    if isinstance(value, list | tuple):
        return [shapes(sizes, v) for v in value]
    return None


def symbolic_axes(value: Any) -> frozenset[int]:
    """Returns the axes of a tensor whose length may differ from run to run."""
    if not isinstance(value, torch.Tensor):
        return frozenset()
    return frozenset(i for i, s in enumerate(value.shape) if static_size(s) is None)


def is_symbolic(value: Any) -> bool:
    """Returns whether a node's value is a length that is known only at run time."""
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
