"""Rules for operators that create tensors: constant ones may shrink, numbered or random ones may not."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Label, Units, frozen
from fxprune.rules.table import rule


@rule("aten.zeros", "aten.ones", "aten.full", "aten.empty.memory_format")
def constant(u: Units, size: Any, *_: Any, **__: Any) -> Axes:
    """A tensor with the same value everywhere: any position can be removed, and the size argument is spelled."""
    return _repeated(u)


@rule("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty")
def constant_like(u: Units, x: Axes, size: Any, *_: Any, **__: Any) -> Axes:
    """A tensor with the same value everywhere, which takes only its type and device from `x`."""
    return _repeated(u)


def _repeated(u: Units) -> Axes:
    out = tuple(Label(n) if u.symbolic(i) else u.fresh([n])[0] for i, n in enumerate(u.out))
    u.spell("size", *out)
    return out


@rule("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like")
def same_shape(u: Units, x: Axes, *_: Any, **__: Any) -> Axes:
    """A tensor that takes its shape from `x` at run time."""
    return x


@rule(
    "aten.arange",
    "aten.linspace",
    "aten.logspace",
    "aten.eye",
    "aten.rand",
    "aten.randn",
    "aten.randint",
    "aten.randperm",
    "aten.scalar_tensor",
    "aten.tril_indices",
    "aten.triu_indices",
    "aten.hann_window",
    "aten.range",
    "aten.normal.float_float",
)
def numbered(u: Units, *_: Any, **__: Any) -> Axes:
    """Values that depend on their position or on the order in which they are drawn: nothing can be removed."""
    return frozen(u.out)
