"""Rules for fake quantisation: quantising and back, with one step for a whole tensor or one for each channel."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Units, drop
from fxprune.rules.table import present, rule

_WHY = "it holds one number for the whole tensor"


@rule("aten._fused_moving_avg_obs_fq_helper")
def observed(
    u: Units,
    x: Axes,
    observer_on: Axes,
    fake_quant_on: Axes,
    low: Axes,
    high: Axes,
    scale: Axes,
    zero_point: Axes,
    rate: float,
    least: int,
    most: int,
    axis: int,
    per_row: bool,
    *_: Any,
) -> list[Axes]:
    """Fake quantisation whose step follows the range of the values it sees, over all axes but that of `per_row`."""
    u.freeze(*observer_on, *fake_quant_on, why="it is a switch")
    u.renormalise(*(drop(x, [axis]) if per_row else x))
    _couple(u, x, axis if per_row else None, low, high, scale, zero_point)
    return [x, x]


@rule("aten._fused_moving_avg_obs_fq_helper_functional")
def observed_functional(u: Units, x: Axes, *args: Any) -> list[Axes]:
    """Does the same, and returns the range, the step and the zero point instead of writing them."""
    return [*observed(u, x, *args), *args[2:6]]


@rule("aten.fake_quantize_per_channel_affine", "aten._fake_quantize_learnable_per_channel_affine")
def per_channel(u: Units, x: Axes, scale: Axes, zero_point: Axes, axis: int, *_: Any) -> Axes:
    """Fake quantisation with one step and zero point for each position of `axis`."""
    _couple(u, x, axis, scale, zero_point)
    return x


@rule("aten.fake_quantize_per_channel_affine_cachemask")
def per_channel_masked(u: Units, x: Axes, *args: Any) -> list[Axes]:
    """Does the same, and returns where values were inside the range too."""
    return [per_channel(u, x, *args)] * 2


@rule("aten.fake_quantize_per_tensor_affine", "aten._fake_quantize_learnable_per_tensor_affine")
def per_tensor(u: Units, x: Axes, *args: Any) -> Axes:
    """Fake quantisation with one step and zero point for the whole tensor."""
    _couple(u, x, None, *present(*args))
    return x


@rule(
    "aten.fake_quantize_per_tensor_affine_cachemask",
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)
def per_tensor_masked(u: Units, x: Axes, *args: Any) -> list[Axes]:
    """Does the same, and returns where values were inside the range too."""
    return [per_tensor(u, x, *args)] * 2


def _couple(u: Units, x: Axes, axis: int | None, *states: Axes) -> None:
    """Couples what is known of each channel with the channels; an observer that has seen nothing yet holds nothing."""
    for state in states:
        if axis is not None and len(state) == 1 and len(state[0]) == len(x[axis]):
            u.unify(x[axis], state[0])
        else:
            u.freeze(*state, why=_WHY)
