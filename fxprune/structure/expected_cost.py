"""The expected cost of a network whose gates are open at random, independently of each other.

Let theta be the probabilities that gates are open. The paper on complexity-aware training (arXiv
2411.09127) gives the expected cost of a convolution with units a before and units b after it, inside a
block with gate B, as

    E = theta_B * sum(theta_a) * sum(theta_b) * k * k * H * W

This module generalises the formula to any graph. The cost of every node and every parameter is a sum
of products of axis lengths (`fxprune.cost`), and

    E[term] = factor * P(needed) * product over its axes of E[length]
    E[length] = sum over positions of product(theta of the units that remove the position)

P(needed) is exact for any graph (`fxprune.structure.need`). There, a gate on units counts as closed if
all its units are closed; in a term over an axis of that gate, the length already accounts for this. If
every theta is 0 or 1, the sum is exactly the cost of the rewritten network. For other values it is the
exact expectation if no gate acts on two axes of one term. If one does, as in a convolution from a
residual stream to itself, the product of the expectations replaces the expectation of the product; this
is our reading of the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.cost import Term, mac_terms, param_terms
from fxprune.graph.gate import gates
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program
from fxprune.structure.formula import ALWAYS, Chances, Formula, assume
from fxprune.structure.need import find_need

Tensor = torch.Tensor


@dataclass(frozen=True)
class Expected:
    """Expected costs, as float64 scalars with gradients to the thetas.

    Attributes:
        macs: the expected multiply-accumulates at the example's batch size.
        params: the expected number of parameter elements, without those of gates.
    """

    macs: Tensor
    params: Tensor


class ExpectedCost:
    """The expected cost of a program as a function of the thetas of its gates.

    Everything that depends only on the graph is computed once; a call takes a few dozen tensor operations.

    Args:
        program: a program with gates.
        axes: its labels.

    Attributes:
        paths: the paths of the gates, in execution order.
    """

    def __init__(self, program: Program, axes: Axes) -> None:
        found = gates(program)
        self.paths = tuple(found)
        ends = np.cumsum([0, *(g.theta.numel() for g in found.values())]).tolist()
        self._runs = _padded([range(a, b) for a, b in pairwise(ends)])
        units = _Units(axes, self.paths, ends)
        self._factors = _padded(units.places)
        need = find_need(program, {path: i for i, path in enumerate(self.paths)})
        products = {node.name: formula for node, formula in need.products.items()}
        sums = _Sums(_Lengths(axes, units))
        for term in mac_terms(program, axes):
            sums.add(0, term, products.get(term.name, ALWAYS))
        for node, formula in need.once.items():
            term = _of_one_place(node, axes)
            sums.add(0, term, formula)
            sums.add(0, replace(term, factor=-term.factor), need.products[node])
        for term in param_terms(program, axes):
            if not is_inside_leaf(program.module, term.name):
                sums.add(1, term, need.tensors.get(term.name, ALWAYS))
        self._lengths = sums.lengths.table()
        self._chances = Chances(list(sums.formulas), len(self.paths))
        self._rows = _padded([rows for rows, _, _ in sums.found])
        self._formulas = torch.tensor([f for _, f, _ in sums.found], dtype=torch.int64)
        self._divisors = torch.tensor([d for _, _, d in sums.found], dtype=torch.float64)
        self._weights = torch.tensor(list(sums.found.values()), dtype=torch.float64).reshape(-1, 2)

    def __call__(self, thetas: Mapping[str, Tensor]) -> Expected:
        """Returns the expected cost.

        Args:
            thetas: the probabilities of each gate by its path, `[size]` or `[]`, between 0 and 1.
        """
        one = torch.ones(1, dtype=torch.float64)
        flat = torch.cat([*(thetas[p].reshape(-1) for p in self.paths), one.to(_device(thetas))])
        every = flat.to(one)
        opened = 1 - torch.cat([1 - every[:-1], one])[self._runs].prod(1)
        lengths = self._lengths(every[self._factors].prod(1))
        chances = self._chances(opened)[self._formulas]
        terms = torch.cat([lengths, one])[self._rows].prod(1)[:, None] * self._weights
        macs, params = (terms / self._divisors[:, None] * chances[:, None]).sum(0)
        return Expected(macs, params)


def _of_one_place(node: fx.Node, axes: Axes) -> Term:
    """Returns the products of a layer with a constant input, computed for a single sample and position."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    sizes, labels = weight.meta["val"].shape[:2], axes.nodes[weight][:2]
    return Term.of(node.name, 1, zip(sizes, map(axes.final, labels), strict=True))


def _padded(rows: Iterable[Sequence[int]]) -> Tensor:
    """Pads rows of places to a table; the padding, -1, is the last place, which holds a 1."""
    rows = list(rows)
    wide = max(map(len, rows), default=0)
    filled = [[*row, *[-1] * (wide - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.int64).reshape(len(rows), wide)


def _device(thetas: Mapping[str, Tensor]) -> torch.device:
    return next((t.device for t in thetas.values()), torch.device("cpu"))


class _Units:
    """The units that gates act on.

    Attributes:
        local: the number of each unit here, from 1, by its number in the axes, `[n_units]`; 0 for a unit
            without a gate.
        places: by that number, the places of the unit's thetas in the row of all thetas; a unit with
            several gates is kept if all of them are open.
        members: by gate with an axis, the numbers of its units.
    """

    def __init__(self, axes: Axes, paths: Sequence[str], ends: Sequence[int]) -> None:
        own: dict[int, dict[int, int]] = {}
        owners: dict[int, set[int]] = {}
        for i, path in enumerate(paths):
            for label in axes.params[f"{path}.theta"]:
                for column in label.columns:
                    for position, unit in enumerate(column.tolist()):
                        if unit:
                            own.setdefault(unit, {}).setdefault(i, ends[i] + position)
                            owners.setdefault(i, set()).add(unit)
        self.local = np.zeros(axes.n_units, np.int64)
        self.local[list(own)] = np.arange(1, len(own) + 1)
        self.places: list[Sequence[int]] = [(), *(tuple(p.values()) for p in own.values())]
        self.members: dict[int, BoolArray] = {}
        for i, units in owners.items():
            self.members[i] = np.zeros(len(own) + 1, bool)
            self.members[i][self.local[list(units)]] = True


class _Lengths:
    """Distinct labels, in terms of the units that have gates.

    Attributes:
        known: the row of a label in the table, by the units in it.
        implied: by row, the gates that must be open if the length is not 0.
    """

    def __init__(self, axes: Axes, units: _Units) -> None:
        self._axes, self._units = axes, units
        self.known: dict[tuple[int, bytes], int] = {}
        self.implied: list[frozenset[int]] = []
        self._columns: list[IntArray] = []

    def row(self, label: Label) -> int | None:
        """Returns the row of a label; None for a label without gated units."""
        if not label.columns:
            return None
        columns = np.sort(np.stack([self._units.local[c] for c in label.columns]), axis=0)
        columns[1:][columns[1:] == columns[:-1]] = 0
        columns = columns[columns.any(1)]
        if not len(columns):
            return None
        key = len(columns), columns.tobytes()
        if key not in self.known:
            self.known[key] = len(self.implied)
            members = self._units.members.items()
            covers = (i for i, own in members if own[columns].any(0).all())
            self.implied.append(frozenset(covers))
            self._columns.append(columns)
        return self.known[key]

    def table(self) -> _LengthTable:
        """Returns the table, ready for evaluation."""
        each = [np.unique(c, axis=1, return_counts=True) for c in self._columns]
        rows = [row for columns, _ in each for row in columns.T.tolist()]
        counts = [n for _, many in each for n in many.tolist()]
        at = [i for i, (_, many) in enumerate(each) for _ in many]
        # Number 0, a unit without a gate, is where a 1 stands too.
        table = _padded(rows).clamp(min=0)
        return _LengthTable(
            table,
            torch.tensor(at, dtype=torch.int64),
            torch.tensor(counts, dtype=torch.float64),
            len(each),
        )


@dataclass(frozen=True)
class _LengthTable:
    """The expected lengths of labels: sums over positions of products over units."""

    units: Tensor
    at: Tensor
    counts: Tensor
    n_rows: int

    def __call__(self, opened: Tensor) -> Tensor:
        each = opened[self.units].prod(1) * self.counts
        return opened.new_zeros(self.n_rows).index_add(0, self.at, each)


class _Sums:
    """The terms, merged where they differ only in their factor.

    Attributes:
        found: the factors of MACs and parameters, by the rows of the lengths, the formula's number and the divisor.
        formulas: the number of each formula.
    """

    def __init__(self, lengths: _Lengths) -> None:
        self.lengths = lengths
        self.found: dict[tuple[tuple[int, ...], int, int], list[int]] = {}
        self.formulas: dict[Formula, int] = {}

    def add(self, column: int, term: Term, needed: Formula) -> None:
        """Adds a term to one of the two costs."""
        factor, rows = term.factor, []
        for label in term.labels:
            row = self.lengths.row(label)
            if row is None:
                factor *= len(label)
            else:
                rows.append(row)
                for number in self.lengths.implied[row]:
                    needed = assume(needed, number, is_open=True)
        number = self.formulas.setdefault(needed, len(self.formulas))
        key = tuple(sorted(rows)), number, term.divisor
        self.found.setdefault(key, [0, 0])[column] += factor
