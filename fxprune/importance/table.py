"""The table of importance criteria; each is one function, registered under its names."""

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
    """The data that a criterion can use.

    Attributes:
        program: the program with its weights.
        axes: its labels.
        groups: the groups whose units are scored.
        loss: called with the program's module; returns a loss or yields one per batch.
        batches: tuples of positional inputs over which activations are gathered.
        seed: the seed for criteria that draw random numbers.
        gathered: a cache for what a criterion computes once, under a key of its own.
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
    """A registered criterion; exactly one of `of_tensor` and `of_units` is set.

    Attributes:
        name: the name under which it was registered.
        of_tensor: returns a saliency for every element of a tensor.
        of_units: returns a score for every unit.
        finish: a function applied to the sum of a unit's saliencies, such as a square root.
    """

    name: str
    of_tensor: TensorCriterion | None = None
    of_units: UnitCriterion | None = None
    finish: Finish | None = None


_table: dict[str, Criterion] = {}


def criterion(
    *names: str, finish: Finish | None = None
) -> Callable[[TensorCriterion], TensorCriterion]:
    """Registers a criterion that scores tensors: a function `(evidence, name, tensor) -> saliency`.

    The saliency has the shape of the tensor. It is summed over the elements that a unit cuts, and
    `finish` (such as a square root) is applied to the sum. If the function returns None, the tensor does
    not contribute.

    Args:
        *names: the names of the criterion.
        finish: a function on arrays, or None.
    """

    def register(function: TensorCriterion) -> TensorCriterion:
        _table.update((n, Criterion(n, of_tensor=function, finish=finish)) for n in names)
        return function

    return register


def unit_criterion(*names: str) -> Callable[[UnitCriterion], UnitCriterion]:
    """Registers a criterion that scores units: a function `evidence -> scores`, one per unit, `[n_units]`."""

    def register(function: UnitCriterion) -> UnitCriterion:
        _table.update((n, Criterion(n, of_units=function)) for n in names)
        return function

    return register


@cache
def load_criteria() -> None:
    """Imports all built-in criteria once, then those of other packages.

    Raises:
        OptionError: the criteria of another package cannot be imported.
    """
    for family in FAMILIES:
        import_module(f"fxprune.importance.{family}")
    load_plugins(PLUGINS)


def criterion_names() -> list[str]:
    """Returns the names of all criteria, sorted."""
    load_criteria()
    return sorted(_table)


def find_criterion(name: str) -> Criterion:
    """Returns the criterion of a name.

    Raises:
        OptionError: there is no criterion of this name.
    """
    load_criteria()
    if name not in _table:
        near = get_close_matches(name, _table, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise OptionError(
            f"there is no criterion {name!r}",
            do=f"{hint}the criteria are {', '.join(criterion_names())}",
        )
    return _table[name]
