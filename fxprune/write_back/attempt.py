"""Tries whether a model runs, and computes what the smaller program computes; says how far it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from fxprune.errors import FxpruneError, PlanError
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.program import Program
from fxprune.verify import check_sizes
from fxprune.write_back.original import Original
from fxprune.write_back.reads import Reads
from fxprune.write_back.slots import Slot


class ForwardError(PlanError):
    """The forward of a smaller model stops.

    Attributes:
        inside: the paths of the modules whose forward had begun and not ended, the outermost first.
    """

    def __init__(self, error: PlanError, inside: Sequence[str]) -> None:
        super().__init__(error.what, where=error.where, why=error.why, do=error.do)
        self.inside = tuple(inside)


class Attempt(NamedTuple):
    """How far a model came; a larger one came further.

    Attributes:
        stage: 0 where its forward fails, 1 where its outputs have other sizes or numbers, 2 where all is right.
        calls: of modules that returned.
        error: why it came no further.
        read: of the numbers that were watched, those that its code read.
    """

    stage: int
    calls: int
    error: FxpruneError | None
    read: frozenset[Slot] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether all is right."""
        return self.error is None

    def beats(self, other: Attempt) -> bool:
        """Whether this came further."""
        return (self.stage, self.calls) > (other.stage, other.calls)


class Trial:
    """Runs a model at its new sizes.

    Args:
        model: that has them.
        program: the smaller program, whose outputs have the sizes that the model's must have.
        numbers: holds the numbers of the model against those of the smaller program; raises where they differ.
        original: the model before it was cut, where there still is one.
    """

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        numbers: Callable[[nn.Module], None],
        original: Original | None = None,
    ) -> None:
        self.model, self.program = model, program
        self._numbers, self._original = numbers, original

    def of(self, model: nn.Module) -> Trial:
        """The same trial of another model."""
        return Trial(model, self.program, self._numbers, self._original)

    @without_collection()
    def __call__(self, *, numbers: bool = True, watched: Sequence[Slot] = ()) -> Attempt:
        """Runs the model without data, and where that is right and `numbers` is set, with data.

        Args:
            numbers: see above.
            watched: numbers of the model of which it is to be said whether its code reads them.
        """
        run, reads = _Run(), Reads(watched)
        data = None if self._original is None else self._original.needs_data

        def prepare(twin: nn.Module) -> None:
            run.watch(twin)
            reads.watch(twin)

        try:
            with reads.recorded():
                check_sizes(self.model, self.program, prepare, data)
        except PlanError as error:
            if self._original is not None:
                self._original.run()
            failed = ForwardError(error, run.inside)
            return Attempt(0, run.calls, failed, frozenset(reads.found))
        if numbers:
            try:
                self._numbers(self.model)
            except FxpruneError as error:
                return Attempt(1, 0, error, frozenset(reads.found))
        return Attempt(2, 0, None, frozenset(reads.found))


class _Run:
    """Counts the modules that return, and knows those that have not yet."""

    def __init__(self) -> None:
        self.calls = 0
        self.inside: list[str] = []

    def watch(self, model: nn.Module) -> None:
        """Listens to a model that is about to run."""
        self.inside = []
        for path, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._begin, path))
            module.register_forward_hook(self._end)

    def _begin(self, path: str, *_: Any) -> None:
        self.inside.append(path)

    def _end(self, *_: Any) -> None:
        self.inside.pop()
        self.calls += 1
