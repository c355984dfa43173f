"""The table of importance criteria; each is one function, registered under its names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Group
from fxprune.calibration.calibration import Call
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.plugins import load_plugins

FloatArray = NDArray[np.float64]
Needs = Literal["nothing", "weights", "inputs", "loss"]
Normalise = Literal["group", "cost", "none"]
Finish = Callable[[FloatArray], FloatArray]
TensorCriterion = Callable[["Evidence", str, torch.Tensor], torch.Tensor | None]
UnitCriterion = Callable[["Evidence"], FloatArray]
FAMILIES = ("magnitude", "gradient", "gates", "activation", "product", "chance")
PLUGINS = "fxprune.criteria"  # entry points of other packages: modules that register criteria


@dataclass(frozen=True)
class Evidence:
    """The data that a criterion can use.

    Attributes:
        program: the program with its weights.
        axes: its labels.
        groups: the groups whose units are scored.
        losses: the losses `[]` of a module, one for each batch of the data; None without data that has a loss.
        calls: positional and keyword inputs over which activations are gathered.
        seed: the seed for criteria that draw random numbers.
        gathered: a cache for what a criterion computes once, under a key of its own.
    """

    program: Program
    axes: Axes
    groups: list[Group]
    losses: Callable[[torch.nn.Module], Iterable[torch.Tensor]] | None = None
    calls: Callable[[], Iterable[Call]] | None = None
    seed: int = 0
    gathered: dict[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    def inputs(self) -> Iterable[Call]:
        """Positional and keyword inputs: those of the data, or else those of the example."""
        if self.calls is None:
            return [(self.program.args, dict(self.program.kwargs))]
        return self.calls()


@dataclass(frozen=True)
class Criterion:
    """A registered criterion; exactly one of `of_tensor` and `of_units` is set.

    Attributes:
        name: the name under which it was registered.
        of_tensor: returns a saliency for every element of a tensor.
        of_units: returns a score for every unit.
        finish: a function applied to the sum of a unit's saliencies, such as a square root.
        needs: what it reads: nothing, weights, inputs too, or a loss too.
        normalise: how the scores of different groups are made comparable, see `fp.Importance`.
    """

    name: str
    of_tensor: TensorCriterion | None = None
    of_units: UnitCriterion | None = None
    finish: Finish | None = None
    needs: Needs = "weights"
    normalise: Normalise = "group"


_table: dict[str, Criterion] = {}


def criterion(
    *names: str,
    finish: Finish | None = None,
    needs: Needs = "weights",
    normalise: Normalise = "group",
) -> Callable[[TensorCriterion], TensorCriterion]:
    """Registers a criterion that scores tensors: a function `(evidence, name, tensor) -> saliency`.

    The saliency has the shape of the tensor. It is summed over the elements that a unit cuts, and
    `finish` (such as a square root) is applied to the sum. If the function returns None, the tensor does
    not contribute.

    Args:
        *names: the names of the criterion.
        finish: a function on arrays, or None.
        needs: what it reads: nothing, weights, inputs too, or a loss too.
        normalise: how the scores of different groups are made comparable, see `fp.Importance`.
    """

    def register(function: TensorCriterion) -> TensorCriterion:
        made = (Criterion(n, function, None, finish, needs, normalise) for n in names)
        _table.update((c.name, c) for c in made)
        return function

    return register


def unit_criterion(
    *names: str, needs: Needs = "weights", normalise: Normalise = "group"
) -> Callable[[UnitCriterion], UnitCriterion]:
    """Registers a criterion that scores units: a function `evidence -> scores`, one per unit, `[n_units]`.

    Args:
        *names: the names of the criterion.
        needs: what it reads: nothing, weights, inputs too, or a loss too.
        normalise: how the scores of different groups are made comparable, see `fp.Importance`.
    """

    def register(function: UnitCriterion) -> UnitCriterion:
        made = (Criterion(n, None, function, None, needs, normalise) for n in names)
        _table.update((c.name, c) for c in made)
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
