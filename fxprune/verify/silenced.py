"""Holds a smaller program against the silenced original, number by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.analysis.axes import Axes, BoolArray
from fxprune.capture.failure import first_line
from fxprune.errors import VerifyError
from fxprune.graph.evaluate import Evaluator, Provide
from fxprune.graph.program import Program, describe
from fxprune.plan import Kept, Plan, Rescale
from fxprune.shrink.tensors import slice_axes
from fxprune.verify.check import (
    Check,
    compare_runs,
    is_undefined,
    relative_error,
    require_numbers,
    run_batch,
)
from fxprune.verify.first_difference import NO_NODE, first_difference
from fxprune.verify.inputs import batches_of
from fxprune.verify.noise import noise_of, numbers_of
from fxprune.verify.reference import Silenced

Tensor = torch.Tensor


def compare_programs(
    program: Program,
    axes: Axes,
    plan: Plan,
    small: Program,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    few: bool = False,
    observe: Callable[[fx.Node, Any], None] | None = None,
) -> Check:
    """Runs the silenced original and the smaller program on the same random inputs.

    Tensors of one repeated value (fresh norms, layer scales, a head of zeros) are given noise, the same in
    both: otherwise an output of zeros would hide every error. Dropout is off.

    Args:
        program: the original.
        axes: its labels.
        plan: what is removed.
        small: what the plan made of it.
        dtype: of both runs.
        seed: of inputs and noise.
        few: whether few rows are enough where the batch is free, without how much the removal itself changes.
        observe: is given each node of the original and its value, in the first run.

    Raises:
        VerifyError: the program is on the meta device and has no numbers to compare.
    """
    require_numbers(program)
    runs = Runs(program, axes, plan, small, dtype, noise_of(numbers_of(program), seed))
    outputs: list[Sequence[Any]] = []

    def silenced(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        try:
            runner = runs.silenced()
            runner.observe = None if outputs else observe
            outputs.append(runs.returned(runner.evaluate(args, kwargs)))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _not_run(program, error) from error
        return outputs[-1]

    check = compare_runs(
        silenced,
        lambda args, kwargs: runs.small().evaluate(args, kwargs),
        batches_of(program, seed, few=few),
        dtype=dtype,
        against="the silenced original",
        seed=seed,
    )
    if plan.removed.size and not few:
        whole = run_batch(runs.whole().evaluate, next(batches_of(program, seed)), seed)
        check = replace(check, change=_change(outputs[0], runs.returned(whole)))
    if check.undefined and (undefined := _first_undefined(runs, seed)):
        return replace(check, undefined=undefined, against="the original")
    check = replace(check, undefined="")  # it comes of the removal
    return check if check.ok else _with_first_difference(check, runs, seed)


def _not_run(program: Program, error: Exception) -> VerifyError:
    return VerifyError(
        f"{program.name} does not run on random inputs like the example's",
        why=f"{type(error).__name__}: {first_line(error)}",
        do="call the model on the example inputs: if that fails too, their types or sizes are wrong; if it runs, "
        "pass verify=False and report the operator",
    )


def _first_undefined(runs: Runs, seed: int) -> str:
    """The first node of the original that is NaN with nothing removed; "" where none is."""
    found: list[str] = []

    def note(node: fx.Node, value: Any) -> None:
        if not found and is_undefined(value):
            found.append(describe(node))

    for batch in batches_of(runs.original, seed):
        whole = runs.whole()
        whole.observe = note
        run_batch(whole.evaluate, batch, seed)
    return found[0] if found else ""


@dataclass(frozen=True)
class Runs:
    """The two programs, and fresh evaluators of them: a run writes to the buffers of its evaluator."""

    original: Program
    axes: Axes
    plan: Plan
    smaller: Program
    dtype: torch.dtype
    noise: Mapping[str, Tensor]

    def whole(self) -> Evaluator:
        return Evaluator(self.original, self.dtype, _adding(self.noise, {}))

    def silenced(self) -> Silenced:
        removed, provide = self.plan.removed, _adding(self.noise, {})
        return Silenced(self.original, self.axes, removed, self.dtype, provide)

    def small(self) -> Evaluator:
        return Evaluator(self.smaller, self.dtype, _adding(self.noise, self.plan.kept))

    @cached_property
    def gone(self) -> BoolArray:
        """The mask of removed units, `[n_units]`."""
        gone = np.zeros(self.axes.n_units, bool)
        gone[self.plan.removed] = True
        return gone

    def kept(self, node: fx.Node, value: Tensor) -> Tensor | None:
        """The positions that stay of what a node returns; None where nothing is known of them."""
        labels = self.axes.nodes.get(node)
        if not isinstance(labels, tuple):
            return None
        lost = {i: self.axes.removed(x, self.gone) for i, x in enumerate(labels)}
        stays = {
            i: np.flatnonzero(~x) for i, x in lost.items() if x.any() and len(x) == value.shape[i]
        }
        return slice_axes(value, stays) if stays else value

    def returned(self, outputs: Sequence[Any]) -> list[Any]:
        """The positions that stay of flat outputs; all of them, unless outputs may become narrower."""
        nodes = pytree.tree_leaves(self.original.graph.output_node().args[0])
        found = []
        for node, value in zip(nodes, outputs, strict=True):
            known = isinstance(node, fx.Node) and isinstance(value, Tensor)
            kept = self.kept(node, value) if known else None
            found.append(value if kept is None else kept)
        return found


def _adding(noise: Mapping[str, Tensor], kept: Kept) -> Provide:
    """Adds noise to tensors; to a sliced tensor, the same positions of the noise."""

    def provide(name: str, tensor: Tensor) -> Tensor:
        if name not in noise:
            return tensor
        return tensor + slice_axes(noise[name], dict(kept.get(name, {}))).to(tensor)

    return provide


def _change(silenced: Sequence[Any], whole: Sequence[Any]) -> float:
    """The largest relative difference that the removal makes to an output that is not all zeros."""
    pairs = zip(silenced, whole, strict=True)
    return max((relative_error(a, b) for a, b in pairs if _any(a)), default=0.0)


def _any(x: Any) -> bool:
    return isinstance(x, Tensor) and bool(x.any())


def _with_first_difference(check: Check, runs: Runs, seed: int) -> Check:
    """The check with the first node whose kept positions differ, and the tensors cut around it."""
    rescaled = {e.node for e in runs.plan.edits if isinstance(e, Rescale)}

    def kept_positions(node: fx.Node, value: Tensor) -> Tensor | None:
        return None if node.name in rescaled else runs.kept(node, value)

    bad = first_difference(
        runs.original.nodes,
        runs.silenced(),
        runs.small(),
        next(batches_of(runs.original, seed)),
        kept_positions,
        tolerance=check.tolerance,
        seed=seed,
    )
    if bad is None:
        return replace(check, first_bad_node=NO_NODE)
    return replace(
        check, first_bad_node=describe(bad), groups=_groups_around(bad, runs.axes, runs.gone)
    )


def _groups_around(node: fx.Node, axes: Axes, gone: BoolArray) -> tuple[str, ...]:
    """The first of the tensors that the removed units around a node cut."""
    near = [node, *node.all_input_nodes]
    units = np.zeros(len(gone), bool)
    for labels in (axes.nodes.get(n) for n in near):
        for label in labels if isinstance(labels, tuple) else ():
            for column in axes.final(label).columns:
                units[column] = True
    units &= gone
    return tuple(
        f"{name}:{i}"
        for name, labels in axes.params.items()
        for i, label in enumerate(labels)
        if any(units[c].any() for c in label.columns)
    )[:8]
