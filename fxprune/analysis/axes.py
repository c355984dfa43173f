"""The solved labels of a Program: which unit removes which position of which tensor."""

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
    """What removes each unit of the analysis.

    Attributes:
        roots: for every unit `[raw]`, the place of the one that stands for it.
        tables: `[k][roots]`, the units that remove it, one in each table, zeros last.
    """

    roots: IntArray
    tables: tuple[IntArray, ...]

    def removed_by(self, unit: int, raw: IntArray | slice = slice(None)) -> BoolArray:
        """Which of the units of the analysis go with a final unit."""
        hit = np.any([t == unit for t in self.tables], axis=0)
        found: BoolArray = hit[self.roots[raw]]
        return found


@dataclass(frozen=True, eq=False)
class Axes:
    """The result of the analysis; depends on the Program only, never on weights.

    Attributes:
        n_units: units are 0..n_units-1, unit 0 is frozen.
        params: labels of each parameter and buffer that the graph uses, by name, over final units.
        names: the first name of a tensor that has several -> all its names.
        nodes: labels of each node's output as the rules left them (see `final`).
        marks: what rules said of a node: silenced axes, spelled arguments, ...
        renormalised: for each unit, whether removing it changes a norm's statistics.
        couplings: every union with its node, for explanations.
        remarks: unknown operators and what they froze.
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
        """The label over final units only: an aliased unit becomes a column for each of its parts."""
        if not label.columns:
            return label
        found = self._final.get(id(label))
        if found is None:
            found = label, expand(label, self._expansion)
            self._final[id(label)] = found
        return found[1]

    def removed(self, label: Label, gone: BoolArray) -> BoolArray:
        """Which positions of a node's axis go when the units in `gone` `[n_units]` go."""
        return lost_positions(self.final(label), gone)


def lost_positions(label: Label, gone: BoolArray) -> BoolArray:
    """Which positions go, for a label over final units such as those of `Axes.params`."""
    out = np.zeros(len(label), bool)
    for column in label.columns:
        out |= gone[column]
    return out


def expand(label: Label, expansion: Expansion) -> Label:
    """Columns over the units that remove them; empty and repeated columns fall away."""
    columns: list[IntArray] = []
    for column in label.columns:
        roots = expansion.roots[column]
        for table in expansion.tables:
            fresh = table[roots]
            if fresh.any() and not any(np.array_equal(fresh, c) for c in columns):
                columns.append(fresh)
    return Label(len(label), tuple(columns))
