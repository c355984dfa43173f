"""Builds the plan that removes a set of units: what each tensor keeps, and the graph edits that follow."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import fx

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray, lost_positions
from fxprune.errors import PlanError
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.operands import get_argument
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes, is_symbolic
from fxprune.plan.fingerprint import fingerprint
from fxprune.plan.plan import Edit, Plan, Rescale, ScaleArgument, SetArgument


@without_collection()
def plan_removal(program: Program, axes: Axes, removed: Iterable[int]) -> Plan:
    """Builds the plan that removes units and all positions that belong to them.

    Raises:
        PlanError: a unit does not exist, or an axis would be left without positions.
    """
    gone = np.zeros(axes.n_units, bool)
    units = np.unique(np.fromiter(removed, np.int64))
    if units.size and (units[0] < 1 or units[-1] >= axes.n_units):
        raise PlanError(
            f"unit {units[-1] if units[0] >= 1 else units[0]} does not exist",
            why=f"this program has units 1 to {axes.n_units - 1}",
            do="take units from fp.groups(program)",
        )
    gone[units] = True
    kept = _kept(axes, gone)
    edits = tuple(_edits(program, axes, gone))
    first = {name: key for key, names in axes.names.items() for name in names}
    lengths = {n: {i: len(axes.params[first[n]][i]) for i in cut} for n, cut in kept.items()}
    return Plan(kept, edits, fingerprint(program), units, lengths, program)


def _kept(axes: Axes, gone: BoolArray) -> dict[str, dict[int, IntArray]]:
    kept: dict[str, dict[int, IntArray]] = {}
    for first, labels in axes.params.items():
        cut: dict[int, IntArray] = {}
        for i, label in enumerate(labels):
            lost = lost_positions(label, gone)
            if lost.any():
                cut[i] = np.flatnonzero(~lost)
                if not cut[i].size:
                    raise PlanError(
                        "the plan removes every position of an axis",
                        where=f"{first}, axis {i}",
                        do="keep at least one of its units",
                    )
        if cut:
            kept.update(dict.fromkeys(axes.names[first], cut))
    return kept


class _Lengths:
    """The lengths of axes before and after a removal, with a prime in place of each symbolic length."""

    def __init__(self, program: Program, axes: Axes, gone: BoolArray) -> None:
        self._axes, self._gone = axes, gone
        self._sizes = Sizes.of_inputs(program.input_values())
        self._after: dict[int, int] = {}

    def after(self, label: Label) -> int:
        if not label.columns:
            return len(label)
        if id(label) not in self._after:
            self._after[id(label)] = len(label) - int(self._axes.removed(label, self._gone).sum())
        return self._after[id(label)]

    def changed(self, label: Label) -> bool:
        return self.after(label) != len(label)

    def value(self, node: fx.Node) -> int:
        """Returns the value of a length computed in the graph after the removal."""
        before = self._sizes.number(node.meta["val"])
        if node.op != "call_function" or not is_symbolic(node.meta["val"]):
            return before
        if str(node.target) == "aten.sym_size.int":
            labels = self._axes.nodes[node.args[0]]
            return self.after(labels[node.args[1]]) if labels is not None else before
        if isinstance(node.target, type(operator.add)) and node.target.__module__ == "_operator":
            operands = [self.value(a) if isinstance(a, fx.Node) else a for a in node.args]
            return int(node.target(*operands))
        return before


def _edits(program: Program, axes: Axes, gone: BoolArray) -> Iterable[Edit]:
    lengths = _Lengths(program, axes, gone)
    for node in program.nodes:
        marks = axes.marks.get(node)
        if marks is None or node.op != "call_function":
            continue
        for argument, labels in marks.spelled.items():
            yield from _spell(node, argument, labels, lengths)
        for argument, (part, whole) in marks.bounds.items():
            old, new = get_argument(node, argument), lengths.after(part)
            if lengths.changed(whole) and old != new:
                yield SetArgument(node.name, argument, None, old, new)
        for argument, (value, label) in marks.pinned.items():
            if lengths.changed(label):
                yield SetArgument(node.name, argument, None, get_argument(node, argument), value)
        before = after = 1
        for label in marks.rescaled:
            before, after = before * len(label), after * lengths.after(label)
        if before != after:
            yield Rescale(node.name, after, before)


def _spell(
    node: fx.Node, argument: str, labels: Label | tuple[Label | None, ...], lengths: _Lengths
) -> Iterable[Edit]:
    old = get_argument(node, argument)
    if isinstance(labels, Label):
        yield from _spell_one(node, argument, None, old, labels, lengths)
        return
    for i, (entry, label) in enumerate(zip(old, labels, strict=True)):
        if label is not None:
            yield from _spell_one(node, argument, i, entry, label, lengths)


def _spell_one(
    node: fx.Node, argument: str, index: int | None, old: Any, label: Label, lengths: _Lengths
) -> Iterable[Edit]:
    if not lengths.changed(label):
        return
    wanted = lengths.after(label)
    if isinstance(old, fx.Node):
        found = lengths.value(old)
        if found != wanted:
            divisor = int(np.gcd(found, wanted))
            yield ScaleArgument(node.name, argument, index, wanted // divisor, found // divisor)
    elif old not in (-1, wanted) and old is not None:
        yield SetArgument(node.name, argument, index, old, wanted)
