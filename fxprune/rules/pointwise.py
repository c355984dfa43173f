"""Rules for elementwise operators and for those that pass their input through."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Label, Units, frozen
from fxprune.rules.table import POINTWISE, rule


@rule(POINTWISE)
def pointwise(u: Units, *operands: Any, **_: Any) -> Axes | list[Axes]:
    """Couples the broadcast operands; several outputs have the same labels."""
    axes = u.broadcast(*operands)
    many = bool(u.out) and not isinstance(u.out[0], int)
    return [axes for _ in u.out] if many else axes


@rule(
    "aten.dropout",
    "aten.feature_dropout",
    "aten.alpha_dropout",
    "aten.feature_alpha_dropout",
    "aten.native_dropout",
    "aten.contiguous",
    "aten.detach",
    "aten.alias",
    "aten.lift_fresh_copy",
    "aten.lift_fresh",
    "aten._to_copy",
    "aten.resolve_conj",
    "aten.resolve_neg",
    "aten.conj",
    "aten._conj",
    "aten._neg_view",
    "aten.real",
    "aten.imag",
    "aten.log_sigmoid",
    "aten.hardswish",
    "aten.fix",
    "aten.absolute",
    "aten.arctan",
    "aten.special_expm1",
    "aten.rrelu_with_noise",
    "aten.divide",
    "aten.multiply",
    "aten.subtract",
    "aten.greater",
    "aten.less",
    "aten.not_equal",
    "aten.polar",
    "aten.complex",
    "aten.copy",
    "aten.fill",
    "aten.zero",
    "aten.rsub.Tensor",
    "aten.masked_fill.Tensor",
    "aten.true_divide",
    "aten.where",
)
def carry(u: Units, x: Axes, *operands: Any, **_: Any) -> Axes | list[Axes]:
    """Elementwise operators that lack torch's pointwise tag."""
    return pointwise(u, x, *operands)


@rule("aten.to", "aten.type_as")
def convert(u: Units, x: Axes, *_: Any, **__: Any) -> Axes:
    """A conversion: only type and device are taken from the other tensor."""
    return x


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(u: Units, x: Axes, weight: Axes) -> Axes:
    """PReLU: the weight has one value, or one for each channel (axis 1)."""
    if len(weight) == 1 and len(x) > 1:
        weight = (weight[0], *frozen([1] * (len(x) - 2)))
    return u.broadcast(x, weight)


@rule("aten.glu")
def glu(u: Units, x: Axes, dim: int = -1) -> Axes:
    """Gated linear unit: one half of the axis gates the other half."""
    dim %= len(x)
    half = len(x[dim]) // 2
    out = u.unify(x[dim].take(slice(0, half)), x[dim].take(slice(half, None)))
    return *x[:dim], out, *x[dim + 1 :]


@rule("aten.view_as_complex")
def view_as_complex(u: Units, x: Axes) -> Axes:
    """The last axis, (real, imaginary), is consumed."""
    u.freeze(x[-1])
    return x[:-1]


@rule("aten.view_as_real")
def view_as_real(u: Units, x: Axes) -> Axes:
    """A last axis, (real, imaginary), is added."""
    return *x, Label(2)


@rule(
    "aten.bernoulli_",
    "aten.uniform_",
    "aten.normal_",
    "aten.random_",
    "aten.exponential_",
    "aten.geometric_",
    "aten.cauchy_",
    "aten.log_normal_",
    "aten.bernoulli",
    "aten.uniform",
    "aten.normal_functional",
    "aten.random",
    "aten.exponential",
    "aten.geometric",
    "aten.cauchy",
    "aten.log_normal",
    "aten.rand_like",
    "aten.randn_like",
    "aten.randint_like",
)
def random(u: Units, x: Axes, *_: Any, **__: Any) -> Axes:
    """Random numbers are drawn in the order of the positions: nothing can be removed."""
    u.freeze(*x, why="random numbers are drawn in the order of positions")
    return frozen([len(a) for a in x])
