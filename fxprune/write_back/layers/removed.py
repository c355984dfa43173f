"""The module in the place of a deleted one: it returns zeros, or what it is given, in the form of the old one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Key = str | int
"""A positional input by its place, or a keyword input by its name."""


@dataclass(frozen=True)
class Length:
    """The length of an axis: (times * length + plus) // by, of the length of an axis of an input.

    Attributes:
        axis: of the input; None where the length is always `plus`.
        times: see above.
        plus: see above.
        by: see above.
    """

    axis: int | None = None
    times: int = 1
    plus: int = 0
    by: int = 1

    def of(self, shape: torch.Size) -> int:
        """The length for an input of this shape."""
        if self.axis is None:
            return self.plus
        return (self.times * shape[self.axis] + self.plus) // self.by


@dataclass(frozen=True)
class Zeros:
    """A tensor of zeros.

    Attributes:
        like: the input whose device it has.
        lengths: of its axes; None where they are those of that input.
        dtype: its type; None where it is that of the input.
    """

    like: Key
    lengths: tuple[Length, ...] | None = None
    dtype: torch.dtype | None = None

    def of(self, inputs: Mapping[Key, Any]) -> torch.Tensor:
        """The zeros for some inputs."""
        x: torch.Tensor = inputs[self.like]
        if self.lengths is None:
            return torch.zeros_like(x, dtype=self.dtype)
        return x.new_zeros([n.of(x.shape) for n in self.lengths], dtype=self.dtype)


@dataclass(frozen=True)
class Same:
    """An input as it is.

    Attributes:
        input: which.
    """

    input: Key

    def of(self, inputs: Mapping[Key, Any]) -> Any:
        """The input."""
        return inputs[self.input]


def inputs_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """The inputs of a call, by place or name."""
    named: list[tuple[Key, Any]] = list(kwargs.items())
    return dict([*enumerate(args), *named])


class Removed(nn.Module):
    """Stands where a deleted module was: returns zeros, or passes an input on, in the form in which that returned it.

    Args:
        kind: the class of the deleted module, in words.
        form: what it returns, nested as the deleted module did, with `Zeros` and `Same` in place of tensors.
    """

    def __init__(self, kind: str, form: Any) -> None:
        super().__init__()
        self.kind, self.form = kind, form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What is left of the deleted module's work."""
        inputs = inputs_of(args, kwargs)
        return pytree.tree_map_only((Zeros, Same), lambda leaf: leaf.of(inputs), self.form)

    def extra_repr(self) -> str:
        """What it returns, for `print`."""
        leaves = [x for x in pytree.tree_leaves(self.form) if isinstance(x, Zeros | Same)]
        passes = any(isinstance(x, Same) for x in leaves)
        return f"{self.kind}; {'passes its input on' if passes else 'returns zeros'}"
