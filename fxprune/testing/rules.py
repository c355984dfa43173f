"""Checks rules against the operators themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, product
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.analysis.solve import solve
from fxprune.errors import PlanError
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import Program
from fxprune.plan import plan_removal
from fxprune.shrink.engine import apply_plan
from fxprune.shrink.tensors import slice_axes
from fxprune.testing.sample import Sample, build_program
from fxprune.verify import Silenced, relative_error

Tensor = torch.Tensor
TOLERANCE = 1e-9
ALONE = 12
SETS = 4
# torch reads beyond the end of their tensors where sizes are wrong
UNCHECKED = ("aten.lstm", "aten.gru", "aten.rnn", "aten._native_batch_norm_legit.default")


class WrongRuleError(AssertionError):
    """A rule allows the removal of positions that the operator needs."""


def check_rule(sample: Sample) -> list[str]:
    """Checks the rule of an operator against the operator.

    Every unit that the rule lets go is removed, each alone and some at random together. The operator on
    the smaller tensors must compute the same values at the kept positions as two references:

    - the silenced reference, with arbitrary values at removed positions, which tests the rule's marks;
    - where no statistics change, the operator itself with zeros at removed positions, which uses no marks.

    Returns:
        The axes about which the rule is timid, frozen although the operator does not need all their positions.

    Raises:
        WrongRuleError: values or sizes differ, or the rule could not handle the call.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on calls as odd as some of these
        return timid_axes(sample, check_removals(sample))


def check_removals(sample: Sample) -> Axes:
    """Runs the first half of `check_rule`: checks that nothing the rule lets go is needed.

    Raises:
        WrongRuleError: see `check_rule`.
    """
    program = build_program(sample)
    axes = solve(program, freeze_outputs=False)
    if axes.remarks:
        raise WrongRuleError(f"{sample}: {axes.remarks[0]}")
    _check_ones(sample, program, axes)
    for removed in _removals(axes):
        _check_removal(sample, program, axes, removed)
    return axes


def frozen_axes(axes: Axes) -> list[tuple[str, int]]:
    """Returns name and number of every axis of which no position can be removed."""
    return [
        (n, i) for n, labels in axes.params.items() for i, x in enumerate(labels) if _is_frozen(x)
    ]


def _removals(axes: Axes) -> Iterator[IntArray]:
    """Yields random sets of units, each unit alone, and the empty set; a sample if there are many units."""
    rng = np.random.default_rng(0)
    units = np.arange(1, axes.n_units)
    for share in np.linspace(0.1, 0.6, SETS):
        yield units[rng.random(len(units)) < share]
    yield from (units if len(units) <= ALONE else rng.choice(units, ALONE, replace=False))[:, None]
    yield units[:0]


def _check_ones(sample: Sample, program: Program, axes: Axes) -> None:
    """Checks axes of length 1, which no removal can test because they can never be removed.

    Such an axis may be free only if it is an axis of length 1 of the result, or is summed over.
    """
    kept: set[int] = set()
    for labels in _output_labels(program, axes):
        kept.update(int(c[0]) for x in labels if len(x) == 1 for c in axes.final(x).columns)
    for marks in axes.marks.values():
        for label in (*marks.silenced, *marks.statistics):
            kept.update(int(c[0]) for c in axes.final(label).columns)
    for name, numbers in axes.params.items():
        for i, label in enumerate(numbers):
            if len(label) == 1 and not {int(c[0]) for c in label.columns} <= kept | {0}:
                raise WrongRuleError(
                    f"{sample}: {name}:{i} of length 1 is free, but the result has no such axis"
                )


def _check_removal(sample: Sample, program: Program, axes: Axes, removed: IntArray) -> None:
    try:
        plan = plan_removal(program, axes, removed)
    except PlanError:
        return  # nothing would be left of an axis: the planner forbids it
    small = apply_plan(program, axes, plan)
    lost = {
        f"{n}:{a}": np.setdiff1d(np.arange(len(axes.params[n][a])), p)
        for n, c in plan.kept.items()
        for a, p in c.items()
    }
    where = f"{sample} without {' '.join(f'{k}{v.tolist()}' for k, v in lost.items())}"
    found = _run(Evaluator(small, torch.float64), where)
    _check_sizes(small, found, where)
    gone = np.zeros(axes.n_units, bool)
    gone[removed] = True
    labels = pytree.tree_leaves(
        _output_labels(program, axes), is_leaf=lambda x: isinstance(x, tuple)
    )
    _compare(
        found,
        _run(Silenced(program, axes, removed, torch.float64), where),
        labels,
        axes,
        gone,
        where,
    )
    if not axes.renormalised[removed].any():
        blank = Evaluator(
            program, torch.float64, lambda name, value: _blank(value, plan.kept.get(name, {}))
        )
        _compare(found, _run(blank, where), labels, axes, gone, f"{where}, zeros in their place")


def _output_labels(program: Program, axes: Axes) -> Any:
    out = program.graph.output_node().args[0]
    return [axes.nodes[n] for n in out] if isinstance(out, list | tuple) else [axes.nodes[out]]


def _run(runner: Evaluator, where: str) -> list[Any]:
    torch.manual_seed(0)
    try:
        return runner.evaluate((), {})
    except Exception as error:
        raise WrongRuleError(f"{where}: {type(error).__name__}: {error}") from error


def _check_sizes(small: Program, found: Sequence[Any], where: str) -> None:
    """Checks that the example values of the smaller program have the sizes of the computed values."""
    out = small.graph.output_node().args[0]
    for node, value in zip(out if isinstance(out, list | tuple) else [out], found, strict=True):
        if node.meta["val"].shape != value.shape:
            raise WrongRuleError(
                f"{where}: {list(value.shape)}, the labels say {list(node.meta['val'].shape)}"
            )


def _compare(
    found: Sequence[Tensor],
    whole: Sequence[Tensor],
    labels: Sequence[Any],
    axes: Axes,
    gone: BoolArray,
    where: str,
) -> None:
    for small, large, label in zip(found, whole, labels, strict=True):
        kept = {i: np.flatnonzero(~axes.removed(x, gone)) for i, x in enumerate(label)}
        small, wanted = _without_nan(small, slice_axes(large, kept))
        if small.shape != wanted.shape:
            raise WrongRuleError(f"{where}: {list(small.shape)} instead of {list(wanted.shape)}")
        error = relative_error(small, wanted)
        if not error <= TOLERANCE:
            raise WrongRuleError(f"{where}: relative error {error:.1e}")


def _without_nan(small: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces values by zeros where both are NaN, such as the deviation of a single value."""
    nan = wanted.isnan() if wanted.is_floating_point() else None
    if (
        nan is None
        or not nan.any()
        or small.shape != wanted.shape
        or not torch.equal(small.isnan(), nan)
    ):
        return small, wanted
    return small.nan_to_num(), wanted.nan_to_num()


def _blank(value: Tensor, cut: Mapping[int, IntArray]) -> Tensor:
    """Sets the positions that would be removed to zero."""
    out = value.clone()
    for axis, kept in cut.items():
        lost = np.setdiff1d(np.arange(value.shape[axis]), kept)
        out.index_fill_(axis, torch.from_numpy(lost), 0)
    return out


def timid_axes(sample: Sample, axes: Axes) -> list[str]:
    """Returns frozen axes of which the operator does not need every position, alone or with others of that length."""
    if sample.op.startswith(UNCHECKED):
        return []
    still = [(n, i, axes.params[n][i]) for n, i in frozen_axes(axes)]
    still.sort(key=lambda s: len(s[2]))
    found: list[str] = []
    for length, alike in groupby(still, key=lambda s: len(s[2])):
        places = [(n, i) for n, i, _ in alike]
        if length < 2:
            continue
        alone = [[p] for p in places]
        found += [
            _show(p)
            for p in (alone if len(places) == 1 else [*alone, places])
            if _can_go(sample, p, length)
        ]
    return found


def _is_frozen(label: Label) -> bool:
    return not any(c.any() for c in label.columns)


def _show(places: Sequence[tuple[str, int]]) -> str:
    return " ".join(f"{n}:{i}" for n, i in places)


def _can_go(sample: Sample, places: Sequence[tuple[str, int]], length: int) -> bool:
    program = build_program(sample)
    return all(
        _agrees(program, places, p, length, shift)
        for p in {0, length // 2, length - 1}
        for shift in (0, 4, -4)
    )


def _agrees(
    program: Program, places: Sequence[tuple[str, int]], position: int, length: int, shift: float
) -> bool:
    """Returns whether the operator without `position` computes a part of its result with zeros at that position."""
    rest: dict[str, dict[int, IntArray]] = {name: {} for name, _ in places}
    for name, axis in places:
        rest[name][axis] = np.delete(np.arange(program.tensors()[name].shape[axis]), position)

    def run(cut: Callable[[Tensor, dict[int, IntArray]], Tensor]) -> list[Tensor]:
        runner = Evaluator(
            program, torch.float64, lambda n, v: cut(_shifted(v, shift), rest.get(n, {}))
        )
        torch.manual_seed(0)
        return runner.evaluate((), {})

    try:
        small = run(slice_axes)
    except (RuntimeError, IndexError, ValueError):
        return False
    return all(_is_part(a, b, position, length) for a, b in zip(small, run(_blank), strict=True))


def _shifted(value: Tensor, shift: float) -> Tensor:
    """Returns other values of the same type, so that a zero cannot agree just because it is small or large."""
    if value.dtype == torch.bool:
        return value | (shift < 0)
    return value + shift if value.is_floating_point() else value


def _is_part(small: Tensor, large: Tensor, position: int, length: int) -> bool:
    """Returns whether `small` is `large` without some positions of the axes in which they differ."""
    if small.dim() != large.dim():
        return False
    cut = [i for i, (a, b) in enumerate(zip(small.shape, large.shape, strict=True)) if a != b]
    lost = [_stands_for(position, length, large.shape[i], small.shape[i]) for i in cut]
    for places in product(*lost):
        kept = {
            i: np.delete(np.arange(large.shape[i]), p) for i, p in zip(cut, places, strict=True)
        }
        if relative_error(small, slice_axes(large, kept)) <= TOLERANCE:
            return True
    return False


def _stands_for(position: int, length: int, size: int, left: int) -> list[IntArray]:
    """Returns which positions of an axis of `size` correspond to a position of an axis of `length`, if `left` stay."""
    times = size - left
    if times == 1 and position < size:
        return [np.array([position])]
    if times < 1 or size != times * length:
        return []
    return [position + length * np.arange(times), position * times + np.arange(times)]
