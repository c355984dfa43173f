"""Plans: what stays of every tensor and what changes in the graph, worked out from a set of removed units."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray, lost_positions
from fxprune.errors import PlanError
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.mode import is_counter, without_mode
from fxprune.graph.operands import get_argument
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes, is_symbolic
from fxprune.plan_json import PlanData, read_plan, to_text

Kept = Mapping[str, Mapping[int, IntArray]]


@dataclass(frozen=True)
class SetArgument:
    """Node `node`: `argument` (its entry `index`, if a list) becomes `new`; it must be `old` before."""

    node: str
    argument: str
    index: int | None
    old: Any
    new: Any


@dataclass(frozen=True)
class ScaleArgument:
    """Node `node`: the length known at run time in `argument` is multiplied by `numerator / denominator`."""

    node: str
    argument: str
    index: int | None
    numerator: int
    denominator: int


@dataclass(frozen=True)
class Rescale:
    """The output of node `node`, an average, is multiplied by `numerator / denominator`."""

    node: str
    numerator: int
    denominator: int


Edit = SetArgument | ScaleArgument | Rescale
KINDS: dict[str, type[Edit]] = {"set": SetArgument, "scale": ScaleArgument, "rescale": Rescale}


@dataclass(frozen=True, eq=False)
class Plan:
    """What a rewrite will do, as data.

    Attributes:
        kept: parameter or buffer -> axis -> original positions that stay, ascending; only what loses some.
        edits: changes of the graph, a function of the program and of what is removed.
        fingerprint: of the program that the plan was made for.
        removed: the removed units, as numbered by the analysis of that program; none in a plan from a file.
        lengths: parameter or buffer -> axis -> its original length, for every axis in `kept`.
        program: that program, where the plan was made from it and not read from a file.
    """

    kept: Kept
    edits: tuple[Edit, ...]
    fingerprint: str
    removed: IntArray
    lengths: Mapping[str, Mapping[int, int]] = field(default_factory=dict, repr=False)
    program: Program | None = field(default=None, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """A hash of what the plan keeps and of the program it is for; equal on every machine."""
        state = hashlib.sha256(self.fingerprint.encode())
        for name in sorted(self.kept):
            for axis, positions in sorted(self.kept[name].items()):
                state.update(f"{name}:{axis}:".encode() + positions.astype("<i8").tobytes())
        return state.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, see docs/plan-format.md."""
        data = PlanData(dict(self.kept), dict(self.lengths), self.edits, self.fingerprint)
        Path(path).write_text(to_text(data, KINDS), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan; `fp.shrink` checks it against the program and works out the units.

        Raises:
            PlanError: no such file, or one that was edited wrongly.
        """
        data = read_plan(Path(path), KINDS)
        return cls(data.kept, data.edits, data.fingerprint, np.zeros(0, np.int64), data.lengths)


@without_collection()
def plan_removal(program: Program, axes: Axes, removed: Iterable[int]) -> Plan:
    """The plan that removes units, and with them everything they stand for.

    Raises:
        PlanError: a unit does not exist, or an axis would be left with no position.
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
                        "the plan leaves nothing of an axis",
                        where=f"{first}, axis {i}",
                        do="keep at least one unit of it",
                    )
        if cut:
            kept.update(dict.fromkeys(axes.names[first], cut))
    return kept


class _Lengths:
    """Lengths of axes before and after a removal, symbolic ones with a prime in their place."""

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
        """What a length computed in the graph comes to after the removal."""
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


def units_of(axes: Axes, removed: Mapping[str, tuple[int, Iterable[int]]]) -> IntArray:
    """The units that remove the given positions of parameter axes, and perhaps more with them.

    Raises:
        PlanError: an unknown parameter, a frozen position, or positions that several units could remove.
    """
    first = {name: key for key, names in axes.names.items() for name in names}
    found: list[IntArray] = []
    for name, (axis, positions) in removed.items():
        labels = axes.params.get(first.get(name, name))
        if labels is None or not 0 <= axis < len(labels):
            raise PlanError(
                f"the program has no axis {axis} of {name}",
                why="no parameter or buffer of that name is used by the graph"
                if labels is None
                else "too few axes",
                do="take names from fp.groups(program)",
            )
        found.append(
            _units_at(
                labels[axis],
                np.unique(np.asarray(list(positions), np.int64)),
                f"{name}, axis {axis}",
            )
        )
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _units_at(label: Label, positions: IntArray, where: str) -> IntArray:
    if positions.size and not 0 <= positions[0] <= positions[-1] < len(label):
        raise PlanError(f"positions outside 0..{len(label) - 1}", where=where)
    wanted = np.zeros(len(label), bool)
    wanted[positions] = True
    chosen: list[IntArray] = []
    covered = np.zeros(len(label), bool)
    for column in label.columns:
        inside = np.setdiff1d(column[wanted], column[~wanted])
        inside = inside[inside != 0]
        covered |= np.isin(column, inside)
        chosen.append(inside)
    rest = wanted & ~covered
    if rest.any():
        chosen.append(_widen(label, rest, where))
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def _widen(label: Label, rest: BoolArray, where: str) -> IntArray:
    """Units at positions that cannot go without others of the same axis."""
    choices = (
        np.stack([c[rest] for c in label.columns])
        if label.columns
        else np.zeros((1, int(rest.sum())), np.int64)
    )
    count = (choices != 0).sum(axis=0)
    if (count == 0).any():
        at = int(np.flatnonzero(rest)[count == 0][0])
        raise PlanError(
            f"position {at} is frozen", where=where, do="fp.explain(program, name, axis) says why"
        )
    if (count > 1).any():
        at = int(np.flatnonzero(rest)[count > 1][0])
        raise PlanError(
            f"position {at} goes only together with others of its axis, in {int(count.max())} possible ways",
            where=where,
            do="name all positions that go with it (see fp.explain), or give units",
        )
    widest: IntArray = choices.max(axis=0)
    return widest


def fingerprint(program: Program) -> str:
    """A hash of the graph's operators and of the names, shapes and types of its tensors.

    Neither weights nor train or eval mode count, nor how a length is computed: torch.export spells that
    anew when a program is saved.
    """
    nodes = [node for node in program.nodes if not is_counter(node)]
    lengths = _computed_lengths(program, nodes)
    others = [node for node in nodes if node not in lengths]
    numbers = lengths | {node: f"%{i}" for i, node in enumerate(others)}
    lines = [
        f"{n.op} {n.target} {fx.map_arg(without_mode(n), lambda m: numbers[m])}" for n in others
    ]
    lines += [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in program.tensors().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _computed_lengths(program: Program, nodes: Iterable[fx.Node]) -> dict[fx.Node, str]:
    """The value of each node that computes a length, with the numbers of the analysis for the symbols."""
    sizes = Sizes.of_inputs(program.input_values())
    return {
        n: f"~{sizes.number(n.meta['val'])}"
        for n in nodes
        if n.op == "call_function" and isinstance(n.meta.get("val"), torch.SymInt)
    }


def check_plan(program: Program, plan: Plan, solved: Callable[[Program], Axes]) -> Plan:
    """The plan as recomputed for `program` from what it keeps.

    Raises:
        PlanError: the plan was made for another program, or says what no removal leads to.
    """
    if plan.program is program:
        return plan
    if plan.fingerprint != fingerprint(program):
        raise PlanError(
            "the plan was made for another program",
            where=f"program {program.name}",
            why=f"fingerprint {plan.fingerprint[:12]} is not {fingerprint(program)[:12]}",
            do="capture the model that the plan was made for, in the same way, or make a new plan",
        )
    axes = solved(program)
    tensors = program.tensors()
    units = units_of_kept(axes, plan.kept, {n: tuple(t.shape) for n, t in tensors.items()})
    again = plan_removal(program, axes, units)
    _compare(plan, again)
    return again


def units_of_kept(axes: Axes, kept: Kept, shapes: Mapping[str, tuple[int, ...]]) -> IntArray:
    """The units whose removal leaves these positions."""
    found = [np.zeros(0, np.int64)]
    first = {name: key for key, names in axes.names.items() for name in names}
    for name, cut in kept.items():
        if name not in first:
            raise PlanError(f"the program has no tensor {name}", do="make a new plan")
        for axis, positions in cut.items():
            if axis >= len(shapes[name]) or (
                positions.size and positions.max() >= shapes[name][axis]
            ):
                raise PlanError(
                    "the plan keeps positions that do not exist", where=f"{name}, axis {axis}"
                )
            lost = np.setdiff1d(np.arange(shapes[name][axis]), positions)
            label = axes.params[first[name]][axis]
            found.append(_contained(label, lost))
    return np.unique(np.concatenate(found))


def _contained(label: Label, positions: IntArray) -> IntArray:
    """Units of the label all of whose positions are among these."""
    wanted = np.zeros(len(label), bool)
    wanted[positions] = True
    parts = [np.setdiff1d(c[wanted], c[~wanted]) for c in label.columns]
    units: IntArray = np.setdiff1d(np.concatenate([*parts, np.zeros(1, np.int64)]), [0])
    return units


def _compare(plan: Plan, again: Plan) -> None:
    for name in sorted(set(plan.kept) | set(again.kept)):
        a, b = plan.kept.get(name, {}), again.kept.get(name, {})
        for axis in sorted(set(a) | set(b)):
            if axis not in a or axis not in b or not np.array_equal(a[axis], b[axis]):
                raise PlanError(
                    "the plan contradicts itself",
                    where=f"{name}, axis {axis}",
                    why="what it keeps here does not follow from what it keeps elsewhere: it was edited",
                    do="change every axis that is coupled (fp.explain), or make a new plan with fp.plan",
                )
    if plan.edits != again.edits:
        raise PlanError(
            "the plan's edits do not follow from what it keeps",
            why="it was edited",
            do="make a new plan",
        )
