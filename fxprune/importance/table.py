"""The table of criteria: one function and one registration each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Group
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.plugins import load_plugins

FloatArray = NDArray[np.float64]
Finish = Callable[[FloatArray], FloatArray]
TensorCriterion = Callable[["Evidence", str, torch.Tensor], torch.Tensor | None]
UnitCriterion = Callable[["Evidence"], FloatArray]
FAMILIES = ("magnitude", "gradient", "activation", "chance")
PLUGINS = "fxprune.criteria"  # entry points of other packages: modules that register criteria


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        program: the program with its weights.
        axes: its labels.
        groups: the groups whose units are scored.
        loss: called with the program's module; returns a loss, or yields one per batch.
        batches: inputs (args tuples) to gather activations over.
        seed: for criteria that draw.
        gathered: room for what a criterion works out once, by its own key.
    """

    program: Program
    axes: Axes
    groups: list[Group]
    loss: Callable[[torch.nn.Module], Any] | None = None
    batches: Iterable[tuple[Any, ...]] | None = None
    seed: int = 0
    gathered: dict[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Criterion:
    """A registered criterion: `of_tensor` gives a saliency per element, or `of_units` a score per unit."""

    name: str
    of_tensor: TensorCriterion | None = None
    of_units: UnitCriterion | None = None
    finish: Finish | None = None


_table: dict[str, Criterion] = {}


def criterion(
    *names: str, finish: Finish | None = None
) -> Callable[[TensorCriterion], TensorCriterion]:
    """Registers a function `(evidence, name, tensor) -> saliency` under names.

    The saliency has the shape of the tensor, is added up over what a unit cuts of it, and goes through `finish`
    (a square root, say). None passes the tensor over.
    """

    def register(function: TensorCriterion) -> TensorCriterion:
        _table.update((n, Criterion(n, of_tensor=function, finish=finish)) for n in names)
        return function

    return register


def unit_criterion(*names: str) -> Callable[[UnitCriterion], UnitCriterion]:
    """Registers a function `evidence -> one score per unit` `[n_units]` under names."""

    def register(function: UnitCriterion) -> UnitCriterion:
        _table.update((n, Criterion(n, of_units=function)) for n in names)
        return function

    return register


@cache
def load_criteria() -> None:
    """Imports every family, once, then the criteria of other packages.

    Raises:
        OptionError: another package's criteria cannot be imported.
    """
    for family in FAMILIES:
        import_module(f"fxprune.importance.{family}")
    load_plugins(PLUGINS)


def criterion_names() -> list[str]:
    """Every name, sorted."""
    load_criteria()
    return sorted(_table)


def find_criterion(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        OptionError: there is none.
    """
    load_criteria()
    if name not in _table:
        near = get_close_matches(name, _table, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise OptionError(
            f"no criterion is called {name!r}", do=f"{hint}known: {', '.join(criterion_names())}"
        )
    return _table[name]
