"""Rules for recurrent layers: a hidden unit is coupled through all gates, layers and directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxprune.algebra.units import Axes, Label, Units, concat
from fxprune.rules.table import rule

State = tuple[Label, ...]


@rule("aten.lstm.input")
def lstm(
    u: Units,
    x: Axes,
    hx: Sequence[Axes],
    params: Sequence[Axes],
    biases: bool,
    layers: int,
    *args: Any,
) -> list[Axes]:
    """LSTM: weights are `[4*hidden, in]` and `[4*hidden, hidden]`, perhaps with a projection `[out, hidden]`."""
    h, c = hx
    out = _recurrent(u, x, h, c, params, 4, biases=biases, both=bool(args[2]))
    return [out, h, c]


@rule("aten.gru.input")
def gru(
    u: Units, x: Axes, hx: Axes, params: Sequence[Axes], biases: bool, layers: int, *args: Any
) -> list[Axes]:
    """GRU: weights are `[3*hidden, in]` and `[3*hidden, hidden]`."""
    return [_recurrent(u, x, hx, hx, params, 3, biases=biases, both=bool(args[2])), hx]


@rule("aten.rnn_tanh.input", "aten.rnn_relu.input")
def rnn(
    u: Units, x: Axes, hx: Axes, params: Sequence[Axes], biases: bool, layers: int, *args: Any
) -> list[Axes]:
    """Plain RNN: weights are `[hidden, in]` and `[hidden, hidden]`."""
    return [_recurrent(u, x, hx, hx, params, 1, biases=biases, both=bool(args[2])), hx]


def _recurrent(
    u: Units,
    x: Axes,
    h: Axes,
    c: Axes,
    params: Sequence[Axes],
    gates: int,
    *,
    biases: bool,
    both: bool,
) -> Axes:
    """Couples the layers: all of them share the state's axis, so a unit is removed from each of them."""
    u.freeze(*x[:-1], *h[:-1], *c[:-1], why="each time step depends on the one before")
    size = (4 if biases else 2) + int(len(h[-1]) != len(c[-1]))
    cells = [params[i : i + size] for i in range(0, len(params), size)]
    directions = 2 if both else 1
    feature = x[-1]
    for i in range(0, len(cells), directions):
        for cell in cells[i : i + directions]:
            _cell(u, feature, h[-1], c[-1], cell, gates)
        feature = concat([h[-1]] * directions)
    return *x[:-1], feature


def _cell(u: Units, feature: Label, h: Label, c: Label, cell: Sequence[Axes], gates: int) -> None:
    u.contract(feature, cell[0][1])
    u.contract(h, cell[1][1])
    projection = len(cell) % 2
    for tensor in cell[: len(cell) - projection]:
        gate, unit = u.split(tensor[0], gates, -1)
        u.freeze(gate, why="every gate of the cell is needed")
        u.unify(c, unit)
    if projection:
        u.freeze(
            c,
            cell[-1][1],
            why="torch assumes there is no projection where both states have the same size",
        )
        u.unify(h, cell[-1][0])
    else:
        u.unify(h, c)
