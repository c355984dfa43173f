"""Single calls of operators, told by the shapes of their tensors, so that they can be timed on random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from fxprune.analysis.axes import Axes
from fxprune.graph.sizes import Sizes, is_symbolic
from fxprune.latency.widths import Width, Widths


@dataclass(frozen=True)
class Shaped:
    """A tensor as an operator sees it.

    Attributes:
        shape: its sizes.
        order: its axes from the outermost to the innermost in memory.
        repeated: the axes along which it is expanded, without memory of their own.
        dtype: its element type.
        device: where it is.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    repeated: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __repr__(self) -> str:
        parts = [str(self.dtype).removeprefix("torch."), "x".join(map(str, self.shape))]
        if self.order != tuple(range(len(self.shape))):
            parts.append("order " + ",".join(map(str, self.order)))
        if self.repeated:
            parts.append("repeated " + ",".join(map(str, self.repeated)))
        return f"<{' '.join(parts)}>"

    def random(self) -> torch.Tensor:
        """A tensor of this form: normal numbers, or zeros, which are valid as indices, or True."""
        sizes = [1 if i in self.repeated else self.shape[i] for i in self.order]
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        if self.dtype.is_floating_point and self.dtype.itemsize > 1:
            flat = torch.randn(sizes, **options)
        elif self.dtype == torch.bool:
            flat = torch.ones(sizes, **options)
        else:
            flat = torch.zeros(sizes, **options)
        places = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.permute(places).expand(self.shape)


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Attributes:
        target: the operator.
        args: its positional arguments, with a `Shaped` in place of each tensor.
        kwargs: its keyword arguments, by name.
    """

    target: torch._ops.OpOverload[Any, Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        """A text that tells calls apart which take different times."""
        named = [f"{name}={value!r}" for name, value in self.kwargs]
        return f"{self.target}({', '.join([*map(repr, self.args), *named])})"

    def tensors(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with random tensors."""
        made = map_aggregate((self.args, self.kwargs), _random)
        return made[0], dict(made[1])


def _random(value: Any) -> Any:
    return value.random() if isinstance(value, Shaped) else value


@dataclass(frozen=True)
class _Growing:
    """A tensor whose axes may be shorter."""

    like: Shaped
    widths: tuple[Width | None, ...]

    def at(self, shares: Mapping[int, float]) -> Shaped:
        sizes = zip(self.like.shape, self.widths, strict=True)
        shape = tuple(n if w is None else w.at(shares) for n, w in sizes)
        like = self.like
        return Shaped(shape, like.order, like.repeated, like.dtype, like.device)


class CallTemplate:
    """The call that a node makes, at any widths.

    Attributes:
        sets: the numbers of the sets of units on which it depends, ascending.
    """

    def __init__(self, node: fx.Node, axes: Axes, widths: Widths, sizes: Sizes) -> None:
        self._node, self._axes, self._widths, self._sizes = node, axes, widths, sizes
        self._args = [map_aggregate(a, self._argument) for a in node.args]
        self._kwargs = {k: map_aggregate(a, self._argument) for k, a in node.kwargs.items()}
        self._spell()
        found: set[int] = set()
        map_aggregate((tuple(self._args), self._kwargs), lambda leaf: found.update(_sets(leaf)))
        self.sets = tuple(sorted(found))

    def at(self, shares: Mapping[int, float]) -> Call:
        """The call where such a share of the units of each set is left, by the numbers of sets."""

        def sized(leaf: Any) -> Any:
            return leaf.at(shares) if isinstance(leaf, _Growing | Width) else leaf

        args = tuple(map_aggregate(a, sized) for a in self._args)
        kwargs = tuple((k, map_aggregate(a, sized)) for k, a in self._kwargs.items())
        return Call(self._node.target, args, kwargs)  # type: ignore[arg-type]

    def _argument(self, leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        value = leaf.meta.get("val")
        if is_symbolic(value):
            return self._sizes.number(value)
        if not isinstance(value, torch.Tensor):
            return value
        shape = tuple(self._sizes.shape(value))
        strides = [self._sizes.number(s) for s in value.stride()]
        order = tuple(sorted(range(len(shape)), key=lambda i: (-strides[i] or -(1 << 62), i)))
        repeated = tuple(
            i for i, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1 > s
        )
        like = Shaped(shape, order, repeated, value.dtype, value.device)
        labels = self._axes.nodes.get(leaf)
        if not isinstance(labels, tuple) or len(labels) != len(shape):
            return like
        widths = (self._widths.of(x, n) for x, n in zip(labels, shape, strict=True))
        return _Growing(like, tuple(w if w.sets else None for w in widths))

    def _spell(self) -> None:
        """Puts widths in place of arguments that repeat lengths."""
        marks = self._axes.marks.get(self._node)
        names = [a.name for a in self._node.target._schema.arguments]  # type: ignore[union-attr]
        for name, labels in marks.spelled.items() if marks else ():
            place = names.index(name)
            if place < len(self._args):
                self._args[place] = self._spelled(self._args[place], labels)
            elif name in self._kwargs:
                self._kwargs[name] = self._spelled(self._kwargs[name], labels)

    def _spelled(self, value: Any, labels: Any) -> Any:
        if isinstance(value, list | tuple) and isinstance(labels, tuple):
            return [self._spelled(v, x) for v, x in zip(value, labels, strict=True)]
        if labels is None or not isinstance(value, int) or value == -1:
            return value
        return self._widths.of(labels, value)


def _sets(leaf: Any) -> set[int]:
    found = leaf.widths if isinstance(leaf, _Growing) else [leaf]
    return {s for w in found if isinstance(w, Width) for s in w.sets}
