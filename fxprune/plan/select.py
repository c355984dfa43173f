"""Finds the units at given positions of parameter axes, or those that are missing from the kept positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.errors import PlanError
from fxprune.plan.plan import Kept


def units_of(axes: Axes, removed: Mapping[str, tuple[int, Iterable[int]]]) -> IntArray:
    """Returns the units that remove the given positions; they may remove further positions too.

    Args:
        axes: the labels of the program.
        removed: parameter or buffer name -> (axis, positions).

    Raises:
        PlanError: the tensor or axis is unknown, a position is frozen, or several units could remove it.
    """
    first = {name: key for key, names in axes.names.items() for name in names}
    found: list[IntArray] = []
    for name, entry in removed.items():
        axis, positions = _entry(name, entry)
        labels = axes.params.get(first.get(name, name))
        if labels is None or not 0 <= axis < len(labels):
            raise PlanError(
                f"the program has no tensor {name} with an axis {axis}",
                why="the graph uses no parameter or buffer of that name"
                if labels is None
                else "the tensor has fewer axes",
                do="take a name and an axis from fp.groups(program)",
            )
        found.append(
            _units_at(
                labels[axis],
                positions,
                f"{name}, axis {axis}",
            )
        )
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _entry(name: str, entry: Any) -> tuple[int, IntArray]:
    """An axis and its positions, sorted."""
    try:
        axis, positions = entry
        found = np.unique(np.asarray(list(positions)))
        whole = isinstance(axis, int) and (found.dtype.kind in "iu" or not found.size)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise PlanError(
            f"{entry!r} is no axis with positions",
            where=str(name),
            do="write an axis and whole numbers: (0, [3, 5])",
        )
    return axis, found.astype(np.int64)


def _units_at(label: Label, positions: IntArray, where: str) -> IntArray:
    if positions.size and not 0 <= positions[0] <= positions[-1] < len(label):
        raise PlanError(f"some positions are outside 0..{len(label) - 1}", where=where)
    wanted = np.zeros(len(label), bool)
    wanted[positions] = True
    chosen: list[IntArray] = []
    covered = np.zeros(len(label), bool)
    for column in label.columns:
        inside = np.setdiff1d(column[wanted], column[~wanted])
        inside = inside[inside != 0]
        covered |= np.isin(column, inside)
        chosen.append(inside)
    rest = wanted & ~covered
    if rest.any():
        chosen.append(_widen(label, rest, where))
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def _widen(label: Label, rest: BoolArray, where: str) -> IntArray:
    """Finds the units of positions that can be removed only together with others of the same axis."""
    choices = (
        np.stack([c[rest] for c in label.columns])
        if label.columns
        else np.zeros((1, int(rest.sum())), np.int64)
    )
    count = (choices != 0).sum(axis=0)
    if (count == 0).any():
        at = int(np.flatnonzero(rest)[count == 0][0])
        raise PlanError(
            f"position {at} is frozen",
            where=where,
            do="see fp.explain(program, name, axis) for the reason",
        )
    if (count > 1).any():
        at = int(np.flatnonzero(rest)[count > 1][0])
        raise PlanError(
            f"position {at} can only be removed together with others of its axis, in {int(count.max())} possible ways",
            where=where,
            do="name all positions to be removed with it (see fp.explain), or pass units",
        )
    widest: IntArray = choices.max(axis=0)
    return widest


def units_of_kept(axes: Axes, kept: Kept, shapes: Mapping[str, tuple[int, ...]]) -> IntArray:
    """Returns the units whose removal leaves exactly these positions."""
    found = [np.zeros(0, np.int64)]
    first = {name: key for key, names in axes.names.items() for name in names}
    for name, cut in kept.items():
        if name not in first:
            raise PlanError(f"the program has no tensor {name}", do="make a new plan")
        for axis, positions in cut.items():
            if axis >= len(shapes[name]) or (
                positions.size and positions.max() >= shapes[name][axis]
            ):
                raise PlanError(
                    "the plan keeps positions that do not exist",
                    where=f"{name}, axis {axis}",
                    do="make a new plan with fp.plan",
                )
            lost = np.setdiff1d(np.arange(shapes[name][axis]), positions)
            label = axes.params[first[name]][axis]
            found.append(_contained(label, lost))
    return np.unique(np.concatenate(found))


def _contained(label: Label, positions: IntArray) -> IntArray:
    """Returns the units of the label whose positions are all among the given ones."""
    wanted = np.zeros(len(label), bool)
    wanted[positions] = True
    parts = [np.setdiff1d(c[wanted], c[~wanted]) for c in label.columns]
    units: IntArray = np.setdiff1d(np.concatenate([*parts, np.zeros(1, np.int64)]), [0])
    return units
