"""The solved labels of a program: which unit removes which position of which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxprune.algebra.label import IntArray, Label
from fxprune.algebra.units import Axes as Labels
from fxprune.algebra.units import Coupling, NodeMarks
from fxprune.remark import Remark

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Expansion:
    """Maps the units of the analysis ("raw" units) to the final units that remove them.

    Attributes:
        roots: for every raw unit, the index of its representative, `[raw]`.
        tables: k arrays `[roots]`: the final units that remove each representative, one per array, with
            zeros last.
    """

    roots: IntArray
    tables: tuple[IntArray, ...]

    def removed_by(self, unit: int, raw: IntArray | slice = slice(None)) -> BoolArray:
        """Returns which raw units are removed together with a final unit."""
        hit = np.any([t == unit for t in self.tables], axis=0)
        found: BoolArray = hit[self.roots[raw]]
        return found


@dataclass(frozen=True, eq=False)
class Axes:
    """The result of the coupling analysis; it depends on the program only, never on its weights.

    Attributes:
        n_units: the number of units, 0 to n_units - 1; unit 0 is frozen.
        params: the labels of each parameter and buffer that the graph uses, by name, over final units.
        names: all names of a shared tensor, by its first name.
        nodes: the labels of each node's output as the rules returned them (see `final`).
        marks: what the rules declared about a node: silenced axes, spelled arguments and so on.
        renormalised: for each unit, whether its removal changes the statistics of a norm, `[n_units]`.
        couplings: every union with the node that asked for it, for explanations.
        remarks: the operators without a usable rule, and what they froze.
    """

    n_units: int
    params: Mapping[str, Labels]
    names: Mapping[str, tuple[str, ...]]
    nodes: Mapping[Any, Any]
    marks: Mapping[Any, NodeMarks]
    renormalised: BoolArray
    couplings: tuple[Coupling, ...]
    remarks: tuple[Remark, ...]
    _expansion: Expansion = field(repr=False)
    _final: dict[int, tuple[Label, Label]] = field(default_factory=dict, repr=False)

    def final(self, label: Label) -> Label:
        """Returns the label over final units only: an aliased unit is replaced by a column for each of its parts."""
        if not label.columns:
            return label
        found = self._final.get(id(label))
        if found is None:
            found = label, expand(label, self._expansion)
            self._final[id(label)] = found
        return found[1]

    def removed(self, label: Label, gone: BoolArray) -> BoolArray:
        """Returns which positions of a node's axis the units in the mask `gone`, `[n_units]`, remove."""
        return lost_positions(self.final(label), gone)


def lost_positions(label: Label, gone: BoolArray) -> BoolArray:
    """Returns which positions are removed, for a label over final units such as those of `Axes.params`."""
    out = np.zeros(len(label), bool)
    for column in label.columns:
        out |= gone[column]
    return out


def expand(label: Label, expansion: Expansion) -> Label:
    """Expresses a label by the final units that remove its positions; empty and repeated columns are dropped."""
    columns: list[IntArray] = []
    for column in label.columns:
        roots = expansion.roots[column]
        for table in expansion.tables:
            fresh = table[roots]
            if fresh.any() and not any(np.array_equal(fresh, c) for c in columns):
                columns.append(fresh)
    return Label(len(label), tuple(columns))
