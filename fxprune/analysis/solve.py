"""Solves the labels of a program: walks its nodes once, applies the rule of each, and resolves the couplings."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cache
from inspect import Parameter, signature
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.algebra.forest import UnitForest
from fxprune.algebra.label import IntArray, Label
from fxprune.algebra.units import Axes as Labels
from fxprune.algebra.units import Units, frozen
from fxprune.analysis.axes import Axes, Expansion, expand
from fxprune.analysis.rulebook import find_rule
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.leaf import Leaf, leaf_of
from fxprune.graph.operands import bind
from fxprune.graph.program import Program, describe
from fxprune.graph.sizes import Sizes, is_symbolic, shapes, symbolic_axes
from fxprune.remark import Remark
from fxprune.rules.table import Rule
from fxprune.torch_private import higher_order


@dataclass
class _Walk:
    program: Program
    sizes: Sizes
    tensors: dict[str, torch.Tensor]
    units: Units = field(default_factory=Units)
    env: dict[fx.Node, Any] = field(default_factory=dict)
    params: dict[str, Labels] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    first: dict[int, str] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    freeze_outputs: bool = True


@without_collection()
def solve(program: Program, *, freeze_outputs: bool = True) -> Axes:
    """Computes the labels of every axis of every tensor in a program.

    The run time is linear in the numbers of nodes and positions, and no weights are needed. A call
    whose operator has no rule, or that the rule cannot handle, freezes all axes that it reads and leaves
    a remark `solve.unknown-op`.

    Args:
        program: a captured network.
        freeze_outputs: whether the program's outputs keep their sizes; not where an operator is tested alone, or
            a wished config makes them narrower.
    """
    sizes = Sizes.of_inputs(program.input_values())
    walk = _Walk(program, sizes, program.tensors(), freeze_outputs=freeze_outputs)
    _name_tensors(walk)
    for node in program.nodes:
        walk.env[node] = _visit(walk, node)
    return _finish(walk)


def _name_tensors(walk: _Walk) -> None:
    for name, tensor in walk.tensors.items():
        first = walk.first.setdefault(id(tensor), name)
        walk.names[first] = (*walk.names.get(first, ()), name)


def _visit(walk: _Walk, node: fx.Node) -> Any:
    if node.op == "placeholder":
        shape = shapes(walk.sizes, node.meta.get("val"))
        return None if shape is None else frozen(shape)
    if node.op == "get_attr":
        return _named(walk, str(node.target))
    if node.op == "output":
        if not walk.freeze_outputs:
            return None
        walk.units.enter(node, ())
        walk.units.freeze(
            *_labels_in(_arguments(walk, node.args)), why="it is an output of the network"
        )
        return None
    if node.target is operator.getitem:
        source, index = node.args
        labels = walk.env[cast(fx.Node, source)]
        return None if labels is None else labels[index]
    return _call(walk, node)


def _named(walk: _Walk, name: str) -> Any:
    """Returns the labels of a parameter or buffer, the same for all its names; None for anything else."""
    tensor = walk.tensors.get(name)
    if tensor is None:
        return None
    first = walk.first[id(tensor)]
    if first not in walk.params:
        walk.params[first] = walk.units.fresh(list(tensor.shape))
    return walk.params[first]


def _call(walk: _Walk, node: fx.Node) -> Any:
    value = node.meta.get("val")
    out = shapes(walk.sizes, value)
    if is_symbolic(value) or isinstance(value, int | float | bool):
        return None
    if (leaf := leaf_of(walk.program.module, node)) is not None:
        return _leaf(walk, node, leaf)
    if name := higher_order(node):
        why = f"torch.{name} runs graphs of its own, through which axes are not followed"
        return _unknown(
            walk, node, out, why, do="let the model compute both branches and torch.where choose"
        )
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return _unknown(walk, node, out, "the call is not a torch operator")
    schema = node.target._schema
    names = [a.name for a in schema.arguments]
    walk.units.enter(node, out, symbolic=symbolic_axes(value), arguments=names)
    found = find_rule(node.target)
    if found is None:
        return _unknown(walk, node, out, "the operator has no rule and no decomposition")
    positional, keywords = bind(node)
    named, rest = _keywords(found)
    if not rest:
        keywords = {k: v for k, v in keywords.items() if k in named}
    try:
        labels = found(walk.units, *_arguments(walk, positional), **_arguments(walk, keywords))
    except (IndexError, ValueError, TypeError, ZeroDivisionError, StopIteration) as error:
        return _unknown(
            walk, node, out, f"its rule cannot handle this call: {type(error).__name__}: {error}"
        )
    if not _fits(labels, out):
        return _unknown(
            walk,
            node,
            out,
            "its rule returned labels whose lengths differ from those of the output",
        )
    if schema.is_mutable:
        _write_back(walk, node, labels)
    return labels


def _leaf(walk: _Walk, node: fx.Node, leaf: Leaf) -> Any:
    """Gates and observers pass their value through; their tensors have one entry per position of the axis."""
    value, axis, _, tiled = (*_arguments(walk, list(node.args)), None, None, False)[:4]
    walk.units.enter(node, shapes(walk.sizes, node.meta["val"]))
    for name, _ in (*leaf.named_parameters(), *leaf.named_buffers()):
        for label in _named(walk, f"{node.target}.{name}"):
            if axis is None:
                walk.units.freeze(label, why="the leaf module has no axis of units")
            else:
                walk.units.unify(label, _entries(walk, value[axis], len(label), tiled))
    return value


def _entries(walk: _Walk, positions: Label, count: int, tiled: bool) -> Label:
    """Returns the label of entries that each apply to a run of an axis's positions, or to every n-th of them."""
    if len(positions) == count:
        return positions
    if tiled:
        return walk.units.split(positions, -1, count)[1]
    return walk.units.split(positions, count, -1)[0]


def _write_back(walk: _Walk, node: fx.Node, labels: Any) -> None:
    """Couples each argument that an operator writes to with the result that is the same memory."""
    schema = node.target._schema  # type: ignore[union-attr]
    results = labels if isinstance(labels, list) else [labels]
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        target = walk.env[value] if isinstance(value, fx.Node) else None
        for result, returned in zip(results, schema.returns, strict=False):
            memory = set() if returned.alias_info is None else returned.alias_info.before_set
            if not argument.alias_info.before_set & memory:
                continue
            if isinstance(target, tuple) and isinstance(result, tuple):
                _couple_written(walk, target, result)


def _couple_written(walk: _Walk, target: tuple[Label, ...], result: tuple[Label, ...]) -> None:
    if [len(x) for x in target] == [len(x) for x in result]:
        for a, b in zip(target, result, strict=True):
            walk.units.unify(a, b)
    else:
        walk.units.freeze(*target, *result, why="an operator writes a value of another size")


@cache
def _keywords(function: Rule) -> tuple[frozenset[str], bool]:
    """Returns the keyword-only arguments that a rule names, and whether it accepts any others."""
    kinds = signature(function).parameters.values()
    named = frozenset(p.name for p in kinds if p.kind is Parameter.KEYWORD_ONLY)
    return named, any(p.kind is Parameter.VAR_KEYWORD for p in kinds)


def _arguments(walk: _Walk, value: Any) -> Any:
    """Replaces nodes by the labels of their values; lengths known only at run time stay nodes."""
    if isinstance(value, fx.Node):
        labels = walk.env[value]
        return value if labels is None else labels
    if isinstance(value, dict):
        return {k: _arguments(walk, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_arguments(walk, v) for v in value]
    return value


def _labels_in(value: Any) -> list[Label]:
    leaves = pytree.tree_leaves(value, is_leaf=lambda x: isinstance(x, Label))
    return [x for x in leaves if isinstance(x, Label)]


def _fits(labels: Any, out: Any) -> bool:
    if isinstance(labels, list):
        return isinstance(out, list) and len(labels) == len(out) and all(map(_fits, labels, out))
    if out is None or labels is None:
        return out is None
    return bool([len(x) for x in labels] == out)


def _unknown(walk: _Walk, node: fx.Node, out: Any, why: str, do: str = "") -> Any:
    """Freezes every axis that the node reads, and leaves a remark."""
    touched = _labels_in(_arguments(walk, (node.args, node.kwargs)))
    walk.units.enter(node, out)
    walk.units.freeze(*touched, why=why)
    lost = sum(len(x) for x in touched if x.columns)
    walk.remarks.append(
        Remark(
            "missed",
            "solve.unknown-op",
            describe(node),
            f"the axes that the operator reads stay as they are: {lost} positions of {len(touched)} axes",
            why,
            do or f'write a rule with @rule("{node.target}"), see docs/rules.md',
        )
    )
    return _frozen_like(out)


def _frozen_like(out: Any) -> Any:
    if out is None:
        return None
    return [_frozen_like(o) for o in out] if out and not isinstance(out[0], int) else frozen(out)


def _finish(walk: _Walk) -> Axes:
    units = walk.units
    expansion = _expansion(units.forest)
    raw = {name: tuple(expand(x, expansion) for x in axes) for name, axes in walk.params.items()}
    table, n_units = _number(expansion, raw)
    axes = Axes(
        n_units=n_units,
        params={n: tuple(_renumber(x, table) for x in a) for n, a in raw.items()},
        names=walk.names,
        nodes=walk.env,
        marks=units.marks,
        renormalised=np.zeros(n_units, bool),
        couplings=tuple(units.couplings),
        remarks=tuple(walk.remarks),
        _expansion=Expansion(expansion.roots, tuple(table[t] for t in expansion.tables)),
    )
    for marks in units.marks.values():
        for label in marks.statistics:
            for column in axes.final(label).columns:
                axes.renormalised[column] = True
    axes.renormalised[0] = False
    axes.renormalised.flags.writeable = False
    return axes


def _renumber(label: Label, table: IntArray) -> Label:
    return Label(len(label), tuple(table[c] for c in label.columns))


def _expansion(forest: UnitForest) -> Expansion:
    """Returns the final units that remove each unit, over the forest's roots, which are far fewer than its units."""
    aliased, tuples = forest.resolve()
    roots, n_roots = forest.number_roots()
    tables = [np.arange(n_roots)]
    if aliased.size:
        aliased, tuples = roots[aliased], roots[tuples]
        place = np.full(n_roots, -1)
        place[aliased] = np.arange(len(aliased))
        while any((place[t] >= 0).any() for t in tables):
            tables = _substitute(tables, place, tuples)
    return Expansion(roots, tuple(tables))


def _substitute(tables: list[IntArray], place: IntArray, tuples: IntArray) -> list[IntArray]:
    """Replaces each aliased unit in the tables by its parts."""
    out: list[IntArray] = []
    for table in tables:
        where = place[table]
        hit = where >= 0
        for k, parts in enumerate(tuples):
            column = np.where(hit, parts[where], table if k == 0 else 0)
            if column.any():
                out.append(column)
    return out


def _number(expansion: Expansion, params: dict[str, Labels]) -> tuple[IntArray, int]:
    """Numbers the units that remove positions of a parameter from 1; all others become frozen."""
    seen = np.zeros(len(expansion.tables[0]), bool)
    for axes in params.values():
        for label in axes:
            for column in label.columns:
                seen[column] = True
    seen[0] = False
    table = np.where(seen, np.cumsum(seen), 0)
    return table, int(seen.sum()) + 1
