"""Runs a whole program in its own precision: to see its values, and to compare it in the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from fxprune.graph.evaluate import Evaluator
from fxprune.graph.free_axes import Conditions
from fxprune.graph.program import Program
from fxprune.verify.check import TOLERANCE, Check, compare_runs, run_batch
from fxprune.verify.equivalence import new_types
from fxprune.verify.inputs import batches_of, lengths_of
from fxprune.verify.local.seen import Seen


class Whole:
    """A program that is run once with few rows, so that later programs can be held against it.

    Attributes:
        program: the program.
        dtype: of the runs: float64 where the program computes in nothing else, otherwise float32.
    """

    def __init__(self, program: Program, seed: int) -> None:
        self.program, self._seed = program, seed
        types = {t.dtype for t in program.tensors().values() if t.is_floating_point()}
        self.dtype = torch.float64 if types == {torch.float64} else torch.float32
        self._first: Sequence[Any] | None = None

    def see(self) -> Seen:
        """What the values of the program look like."""
        tried, example = lengths_of(self.program, few=True), Conditions(self.program.graph).example
        seen = Seen({**example, **tried.first}, self._seed)
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
