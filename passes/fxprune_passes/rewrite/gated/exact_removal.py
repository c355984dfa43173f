"""Which units a program computes the same without, because their gates are at 0 wherever they are read."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes, lost_positions
from fxprune.graph.gate import Gate, gate_nodes, gates, spread
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Unit
from fxprune_passes.rewrite.constants.constant import Constant
from fxprune_passes.rewrite.constants.constant_units import Known, constant_units
from fxprune_passes.rewrite.constants.dead import Candidates, find_dead


def gated_constants(
    program: Program, ctx: Context, *, rewrite: bool = True
) -> tuple[Known, Candidates]:
    """The units that closed gates make constant in each value, and those that can go exactly.

    In eval mode the constant that an activation function makes of a 0 may move into the following biases; in
    train mode only what is 0 can go, since a bias is trained.

    Args:
        program: a program with gates.
        ctx: provides the labels of the program.
        rewrite: whether biases and norms will make up for the units; else they must be 0 wherever they are read.
    """
    known = constant_units(program, _zeros_behind(program), weights=False)
    carry = rewrite and not program.training
    return known, find_dead(program, ctx, known, carry=carry, norms=rewrite)


def _zeros_behind(program: Program) -> dict[fx.Node, Constant]:
    """The zeros that closed unit gates put into the values behind them."""
    found: dict[fx.Node, Constant] = {}
    closed = {p: g for p, g in gates(program).items() if g.theta.dim()}
    for path, nodes in gate_nodes(program).items():
        if path in closed and bool((closed[path].settled() == 0).any()):
            found |= {node: _zeros(node, closed[path]) for node in nodes}
    return found


def _zeros(node: fx.Node, gate: Gate) -> Constant:
    value = node.meta["val"]
    axis = cast(int, node.args[1]) % value.dim()
    tiled = len(node.args) > 3 and bool(node.args[3])
    factors = spread(gate.settled(), value.shape[axis], tiled=tiled).double().cpu()
    return Constant(axis, torch.where(factors == 0, 0.0, float("nan")).double())


def without_empty_axes(axes: Axes, units: list[Unit]) -> list[Unit]:
    """The units but for those whose removal would leave an axis without a position."""
    gone = np.zeros(axes.n_units, bool)
    gone[units] = True
    for labels in axes.params.values():
        for label in labels:
            while label.columns and bool(lost_positions(label, gone).all()):
                gone[_at_first(label.columns)] = False
    return [u for u in units if gone[u]]


def _at_first(columns: tuple[IntArray, ...]) -> list[int]:
    return [int(column[0]) for column in columns]
