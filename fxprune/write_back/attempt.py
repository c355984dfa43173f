"""Tries whether a model runs, and computes what the smaller program computes; says how far it came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from fxprune.errors import FxpruneError, PlanError
from fxprune.graph.program import Program
from fxprune.verify import check_sizes


class Attempt(NamedTuple):
    """How far a model came; a larger one came further.

    Attributes:
        stage: 0 where its forward fails, 1 where its outputs have other sizes or numbers, 2 where all is right.
        calls: of modules that returned.
        error: why it came no further.
        begun: the paths of the modules that were called, where its forward fails; None where all may have been.
    """

    stage: int
    calls: int
    error: FxpruneError | None
    begun: frozenset[str] | None = None

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
    """

    def __init__(
        self, model: nn.Module, program: Program, numbers: Callable[[nn.Module], None]
    ) -> None:
        self.model, self.program, self._numbers = model, program, numbers

    def of(self, model: nn.Module) -> Trial:
        """The same trial of another model."""
        return Trial(model, self.program, self._numbers)

    def __call__(self, *, numbers: bool = True) -> Attempt:
        """Runs the model without data, and where that is right and `numbers` is set, with data."""
        calls = 0
        paths: dict[nn.Module, str] = {}
        begun = set[str]()

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        def begin(module: nn.Module, _: Any) -> None:
            if not paths:  # the model, or a stand-in of it
                paths.update((m, path) for path, m in module.named_modules())
            begun.add(paths.get(module, ""))

        handles = register_module_forward_pre_hook(begin), register_module_forward_hook(count)
        try:
            check_sizes(self.model, self.program)
        except PlanError as error:
            return Attempt(0, calls, error, frozenset(begun))
        finally:
            for handle in handles:
                handle.remove()
        if numbers:
            try:
                self._numbers(self.model)
            except FxpruneError as error:
                return Attempt(1, 0, error)
        return Attempt(2, 0, None)
