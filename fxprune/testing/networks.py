"""Checks whole networks: capture, random removal, shrinking and verification."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.api import groups, plan, shrink, solved, verify
from fxprune.capture import capture
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import Program
from fxprune.testing.pipelines import DifferenceError, projections, shaken
from fxprune.verify import Check
from fxprune.verify.agreement import check_capture
from fxprune.verify.reference import Silenced

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


def check_random_removal(
    model: nn.Module, args: tuple[torch.Tensor, ...], seed: int, *, train: bool
) -> float:
    """Captures a network in float64, removes random units, and checks the result forward and backward.

    The captured program is held to the model, the smaller program to the silenced original, and the gradient of
    the smaller program along a random direction to the central difference of the silenced original along it.

    Args:
        model: the network.
        args: example inputs; a number other than the batch stays as it is.
        seed: of the share and the units that are removed, and of the inputs.
        train: whether the network is in train mode; the parameters' gradients are compared then as well.

    Returns:
        The share of the units that was removed.

    Raises:
        VerifyError: the captured program does something else than the model.
        AssertionError: the smaller program does something else than the silenced original, or the captured
            program could not be compared with the model.
    """
    torch.manual_seed(seed)
    args = tuple(torch.randn(a.shape, dtype=torch.float64) for a in args)
    program = capture(shaken(model).double().train(train), args)
    _, missed = check_capture(model, program)
    assert not missed, missed[0]
    removed = random_units(program, random.Random(seed).uniform(0.1, 0.7), seed)
    small = check_removal(program, removed)
    check_slope(program, removed, small, args)
    return len(removed) / max(1, solved(program).n_units)


def check_slope(
    program: Program, removed: IntArray, small: Program, args: tuple[torch.Tensor, ...]
) -> None:
    """Holds the slope of a smaller program along a random direction to that of the silenced original.

    It is the slope of a random projection of the outputs: by automatic differentiation in the smaller program, by a
    central difference in the silenced original. Dropout is off.

    Args:
        program: the original, in float64.
        removed: the units that the smaller program lacks.
        small: the smaller program.
        args: where to take the slope, in float64.

    Raises:
        DifferenceError: they differ by more than a ten thousandth.
    """
    along = tuple(torch.randn_like(a) for a in args)
    step = 1e-6

    def silenced(sign: int) -> torch.Tensor:
        moved = tuple(a + sign * step * d for a, d in zip(args, along, strict=True))
        run = Silenced(program, solved(program), removed, torch.float64)
        return _projected(run.evaluate(moved, {}))

    wanted = float(silenced(1) - silenced(-1)) / (2 * step)
    leaves = [a.clone().requires_grad_() for a in args]
    run = Evaluator(small, torch.float64)
    grads = torch.autograd.grad(
        _projected(run.run(*leaves, enable_io_processing=False)), leaves, allow_unused=True
    )
    found = sum(float((g * d).sum()) for g, d in zip(grads, along, strict=True) if g is not None)
    if abs(found - wanted) > 1e-4 * max(1.0, abs(wanted)):
        raise DifferenceError(f"the slope is {found:.6g} in place of {wanted:.6g}")


def _projected(outputs: Any) -> torch.Tensor:
    """A fixed weighted sum of all outputs."""
    tensors = [y for y in pytree.tree_leaves(outputs) if isinstance(y, torch.Tensor)]
    return sum(projections(tensors), torch.zeros(()))


def _check_axes(axes: Axes, where: Where, *, free: bool) -> None:
    first = {name: key for key, names in axes.names.items() for name in names}
    for name, numbers in where.items():
        for axis in [numbers] if isinstance(numbers, int) else numbers:
            columns = axes.params[first[name]][axis].columns
            goes = np.any([c != 0 for c in columns], axis=0) if columns else np.zeros(1, bool)
            assert goes.all() if free else not goes.any(), (
                f"{name} axis {axis}: {goes.sum()} of {goes.size} may go"
            )
