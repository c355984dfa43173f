"""What a lean graph calls in place of its gates: multipliers read once, and put where they cost least."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.graph.gate import Gate, spread, weigh

# 0.0 or 1.0 where a gate is known to be that as a whole and nothing asks for its slope; else its values.
Multiplier = torch.Tensor | float


def read_gates(draw: list[bool], *gates: Gate) -> tuple[Multiplier, ...]:
    """Draws the gates that draw in each forward pass, in order, and returns the multiplier of each.

    A device is waited for at most once.

    Args:
        draw: which gates have a call in the graph that draws.
        gates: the gates.
    """
    found: list[Multiplier] = []
    for gate, draws in zip(gates, draw, strict=True):
        if draws:
            gate.draw_anew()
        found.append(gate.values())
    known = [i for i, m in enumerate(found) if _is_readable(m)]
    if known:
        bounds = torch.stack([torch.stack(m.detach().aminmax()) for m in _at(found, known)])
        for i, (low, high) in zip(known, bounds.tolist(), strict=True):
            if low == high and low in (0.0, 1.0):
                found[i] = low
    return tuple(found)


def _at(found: list[Multiplier], known: list[int]) -> list[torch.Tensor]:
    """The multipliers at some places, in one type and on one device."""
    first = found[known[0]]
    assert isinstance(first, torch.Tensor)
    return [torch.as_tensor(found[i]).to(first) for i in known]


def _is_readable(multiplier: Multiplier) -> bool:
    """Returns whether the numbers may be looked at: they have data, and their slope is not asked for."""
    plain = type(multiplier) in (torch.Tensor, nn.Parameter)
    if not plain or not isinstance(multiplier, torch.Tensor) or multiplier.is_meta:
        return False
    return multiplier.numel() > 0 and not (multiplier.requires_grad and torch.is_grad_enabled())


def multiply(
    m: Multiplier, value: torch.Tensor, axis: int | None = None, tiled: bool = False
) -> torch.Tensor:
    """Returns the value times the multiplier of its gate, see `Gate.forward`."""
    if isinstance(m, float):
        return value if m == 1 else value * m
    return weigh(_spread(m, value, axis, tiled), value, axis)


def scaled(m: Multiplier, vector: torch.Tensor) -> torch.Tensor:
    """Returns the scale or shift of a norm times a single multiplier."""
    if isinstance(m, float):
        return vector if m == 1 else vector * m
    return vector * m.to(vector.dtype)


def into_rows(
    m: Multiplier, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[Multiplier, torch.Tensor, torch.Tensor | None]:
    """Moves a single multiplier of the output of a layer into its weight, where that has fewer numbers.

    Args:
        m: the multiplier.
        x: the input of the layer.
        weight: `[outputs, inputs / groups, *kernel]`.
        bias: `[outputs]` or None.

    Returns:
        The multiplier that is left for the output, and the weight and bias to use.
    """
    outputs = x.numel() // max(1, weight.shape[1]) * weight.shape[0]
    if m == 1.0 if isinstance(m, float) else not _may_take(weight, outputs):
        return m, weight, bias
    return 1.0, scaled(m, weight), None if bias is None else scaled(m, bias)


def into_columns(
    m: Multiplier,
    value: torch.Tensor,
    axis: int,
    tiled: bool,
    groups: list[int],
    *weights: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Moves the multipliers of units into the weights of the layers that sum over them, where these have fewer numbers.

    Args:
        m: the multiplier.
        value: what the layers read.
        axis: the axis of the units.
        tiled: see `Gate.forward`.
        groups: of each layer.
        weights: of each layer, `[outputs, inputs / groups, *kernel]`.

    Returns:
        The value and the weights to use.
    """
    if isinstance(m, float):
        return (value if m == 1 else value * m, *weights)
    vector = _spread(m, value, axis, tiled)
    total = sum(w.numel() for w in weights)
    if not all(_may_take(w, value.numel()) for w in weights) or total > value.numel():
        return (weigh(vector, value, axis), *weights)
    return (value, *(_columns(vector, w, n) for w, n in zip(weights, groups, strict=True)))


def _columns(vector: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Multiplies the columns of a weight, group after group, by a number for each input of the layer."""
    shape = [groups, weight.shape[0] // groups, *weight.shape[1:]]
    ones = [1] * (weight.dim() - 2)
    inputs = vector.to(weight.dtype).view(groups, 1, weight.shape[1], *ones)
    return (weight.reshape(shape) * inputs).reshape(weight.shape)


def _may_take(weight: torch.Tensor, places: int) -> bool:
    """Returns whether a weight has no more numbers than a map, and is spread over no devices."""
    return type(weight) in (torch.Tensor, nn.Parameter) and weight.numel() <= places


def _spread(m: torch.Tensor, value: torch.Tensor, axis: int | None, tiled: bool) -> torch.Tensor:
    return m if axis is None else spread(m, value.shape[axis], tiled=tiled)
