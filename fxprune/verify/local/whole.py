"""Runs a whole program in its own precision: to see its values, and to compare it in the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from fxprune.analysis.axes import Axes
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import Program
from fxprune.plan import Plan
from fxprune.verify.check import TOLERANCE, Check, compare_runs, run_batch
from fxprune.verify.equivalence import new_types
from fxprune.verify.how import How
from fxprune.verify.inputs import batches_of
from fxprune.verify.local.functions import lengths_to_try
from fxprune.verify.local.plans import compare_plan_locally
from fxprune.verify.local.proof import CannotCompareError
from fxprune.verify.local.seen import Seen
from fxprune.verify.silenced import compare_programs


class Whole:
    """A program that is run once with few rows, so that later programs can be held against it.

    Attributes:
        program: the program.
        dtype: of the runs: float64 where the program computes in nothing else, otherwise float32.
    """

    def __init__(self, program: Program, seed: int) -> None:
        self.program, self._seed, self.dtype = program, seed, own_type(program)
        self._first: Sequence[Any] | None = None

    def see(self) -> Seen:
        """What the values of the program look like."""
        seen = Seen(lengths_to_try(self.program)[0], self._seed)
        runner = Evaluator(self.program, self.dtype)
        runner.observe = seen.note
        batch = next(batches_of(self.program, self._seed, few=True))
        self._first = run_batch(runner.evaluate, batch, self._seed)
        return seen

    def compare(self, after: Program) -> Check:
        """Holds another program against it, with few rows, and with another number of rows."""
        first = [self._first] if self._first is not None else []

        def wanted(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
            if first:
                return first.pop() or []
            return Evaluator(self.program, self.dtype).evaluate(args, kwargs)

        types = (self.dtype, *new_types(self.program, after))
        return compare_runs(
            wanted,
            lambda args, kwargs: Evaluator(after, self.dtype).evaluate(args, kwargs),
            islice(batches_of(self.program, self._seed, few=True), 2),
            dtype=self.dtype,
            against="the program at the start",
            tolerance=max(TOLERANCE[t] for t in types if t in TOLERANCE),
            seed=self._seed,
        )


def own_type(program: Program) -> torch.dtype:
    """The type in which a whole program is run: float64 if all its numbers are of it, otherwise float32."""
    types = {t.dtype for t in program.tensors().values() if t.is_floating_point()}
    return torch.float64 if types == {torch.float64} else torch.float32


def compare_plan(
    program: Program, axes: Axes, plan: Plan, small: Program, *, how: How, seed: int
) -> tuple[list[Check], str]:
    """Holds a smaller program against the silenced original.

    Args:
        program: the original.
        axes: its labels.
        plan: what is removed.
        small: what the plan made of it, or what other rewrites made of that.
        how: whether operator by operator in float64 and the whole in its own precision, or the whole in float64.
        seed: of inputs and noise.

    Returns:
        The checks, the last of which may be bad; and why the whole was compared in float64 although not asked for.

    Raises:
        VerifyError: the original does not run on random inputs, or has no numbers.
    """
    why = ""
    if how == "local":
        seen = Seen(lengths_to_try(program)[0], seed)
        options: dict[str, Any] = {"dtype": own_type(program), "few": True, "observe": seen.note}
        try:
            whole = compare_programs(program, axes, plan, small, seed=seed, **options)
            if whole.ok:
                local = compare_plan_locally(program, axes, plan, small, seen, seed=seed)
                return [local, whole], ""
            why = f"in its own precision it differs by {whole.max_relative_error:.1e}"
        except CannotCompareError as error:
            why = str(error)
    return [compare_programs(program, axes, plan, small, seed=seed)], why
