"""The table of attributes that repeat sizes, by class of module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fxprune.algebra.label import IntArray
from fxprune.plan import Kept


@dataclass(frozen=True)
class Cut:
    """The effect of a plan on one module.

    Attributes:
        module: the module, with its tensors already sliced and its attributes unchanged.
        path: its name in the model; "" for the model itself.
        kept: its own parameters and buffers -> axis -> kept positions, for those that lose positions.
        before: the original length of axis 0 of each of its tensors.
        spelled: new values of arguments of the operators it calls, by (name, entry).
    """

    module: Any
    path: str
    kept: Kept
    before: Mapping[str, int]
    spelled: Mapping[tuple[str, int | None], Any]

    def groups(self, tensor: str, groups: int) -> int:
        """Returns how many of `groups` equal runs of axis 0 keep at least one position."""
        positions: IntArray | None = self.kept.get(tensor, {}).get(0)
        if positions is None:
            return groups
        return len(np.unique(positions // (self.before[tensor] // groups)))


Attributes = dict[str, Any]
Sizer = Callable[[Cut], Attributes]
_table: dict[type[nn.Module], Sizer] = {}


def register_sizes(*kinds: type[nn.Module]) -> Callable[[Sizer], Sizer]:
    """Registers a function that returns the new attributes of modules of these classes, and subclasses, after a cut."""

    def register(function: Sizer) -> Sizer:
        _table.update(dict.fromkeys(kinds, function))
        return function

    return register


def new_attributes(cut: Cut) -> Attributes:
    """Returns the attributes of a module after a cut, as the function for its class says; none for other classes."""
    found = next((_table[k] for k in type(cut.module).__mro__ if k in _table), None)
    return {} if found is None else found(cut)
