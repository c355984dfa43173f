"""Checks whole networks: capture, random removal, shrinking and verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.api import groups, plan, shrink, solved, verify
from fxprune.capture import capture
from fxprune.graph.program import Program
from fxprune.verify import Check

Where = Mapping[str, int | Sequence[int]]


def check_network(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    prunable: Where | None = None,
    kept: Where | None = None,
    shares: Sequence[float] = (0.3, 0.5),
    unknown: bool = False,
    seed: int = 0,
) -> Program:
    """Removes random units from every group of a network and verifies the result.

    Args:
        model: the network.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        prunable: parameters with axes of which every position must be removable.
        kept: parameters with axes of which no position may be removable.
        shares: the shares of each group to remove, one round for each.
        unknown: whether operators without a rule are allowed.
        seed: the seed of the random choice.

    Returns:
        The captured program.

    Raises:
        AssertionError: an axis is not as expected, or the smaller program does not agree.
    """
    program = capture(model, args, dict(kwargs or {}))
    axes = solved(program)
    assert unknown or not axes.remarks, axes.remarks[0]
    _check_axes(axes, prunable or {}, free=True)
    _check_axes(axes, kept or {}, free=False)
    for share in shares:
        check_removal(program, random_units(program, share, seed))
    return program


def random_units(program: Program, share: float, seed: int = 0) -> IntArray:
    """Returns a random share of every group's units; a unit is kept where an axis would become empty."""
    rng = np.random.default_rng(seed)
    axes = solved(program)
    gone = np.zeros(axes.n_units, bool)
    for group in groups(program):
        gone[rng.choice(group.units, int(share * len(group)), replace=False)] = True
    _give_back(axes, gone)
    return np.flatnonzero(gone)


def _give_back(axes: Axes, gone: np.ndarray) -> None:
    """Keeps the first position of every axis that would lose all its positions."""
    for labels in axes.params.values():
        for label in labels:
            if label.columns and np.any([gone[c] for c in label.columns], axis=0).all():
                for column in label.columns:
                    gone[column[0]] = False


def check_removal(program: Program, removed: IntArray) -> Program:
    """Returns the smaller program after verifying it in float64."""
    decided = plan(program, removed)
    small = shrink(program, decided)
    check = verify(program, decided, small)
    assert isinstance(check, Check)
    assert check.ok, str(check)
    return small


def _check_axes(axes: Axes, where: Where, *, free: bool) -> None:
    first = {name: key for key, names in axes.names.items() for name in names}
    for name, numbers in where.items():
        for axis in [numbers] if isinstance(numbers, int) else numbers:
            columns = axes.params[first[name]][axis].columns
            goes = np.any([c != 0 for c in columns], axis=0) if columns else np.zeros(1, bool)
            assert goes.all() if free else not goes.any(), (
                f"{name} axis {axis}: {goes.sum()} of {goes.size} may go"
            )
