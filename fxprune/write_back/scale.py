"""The scale of attention, folded into the weights of the queries where a class works it out from a size.

A plan that narrows the heads leaves attention its scale, 1/sqrt(d) of the d positions that there were. A forward that
works the scale out from a size, or a class that is built anew, makes 1/sqrt(n) of the n positions that stay: the
queries take the factor sqrt(n/d). Into which numbers it goes is found out by differentiating: the queries have to be
homogeneous of degree 1 in what they are made of, <p, dq/dp> = q (Euler). Other products with a power of a width are
treated alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isclose
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.analysis.cache import solved
from fxprune.graph.program import Program
from fxprune.plan import Edit, Plan, SetArgument
from fxprune.process.random_state import seeded
from fxprune.verify.check import on_meta
from fxprune.write_back.fold import Fold, Folds
from fxprune.write_back.operand import AGREE, Operand, Part, Probe, other_factors

Tensor = torch.Tensor
_POWERS = (0.5, 1.0)  # 1/sqrt(d), and 1/d, as in networks whose width is scaled by muP
_CASTS = ("aten._to_copy.default", "aten.to.dtype", "aten.type_as.default")


@dataclass(frozen=True, eq=False)
class Site:
    """An operator whose result a class may scale by a power of the length of an axis that a plan cuts.

    Attributes:
        node: the name of the operator: two activations are multiplied with each other and summed over the axis, or one
            is multiplied by a number that is such a power.
        operands: the names of the activations.
        old: the length of the axis before.
        new: its length after.
        units: that remove its positions.
        edit: of the plan, where the operator itself works out the scale from the length.
        power: of new over old that the first operand takes, where it is known.
    """

    node: str
    operands: tuple[str, ...]
    old: int
    new: int
    units: IntArray
    edit: SetArgument | None = None
    power: float | None = None


class Scales:
    """The scales that a plan leaves behind in the attention of a program.

    Args:
        plan: of its program.
        small: the smaller program.
    """

    def __init__(self, plan: Plan, small: Program) -> None:
        assert plan.program is not None, "it has a smaller program"
        self._axes = solved(plan.program)
        self._plan, self._small = plan, small
        self._sites = list(_sites(plan, plan.program, self._axes))

    @cached_property
    def edits(self) -> list[Edit]:
        """The edits of the plan that weights can take over."""
        return [s.edit for s in self._sites if s.edit is not None and s.node in self._parts]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes whose scale is concerned."""
        return tuple(site.node for site in self._sites)

    def options(self) -> Iterator[Folds]:
        """What weights may have to take over, in the order in which it is to be tried."""
        own = [s for s in self._sites if s.node in self._parts]
        pinned = self._folds([s for s in own if s.edit is not None], _POWERS[0])
        numbers = self._folds([s for s in own if s.power is not None], 0.0)
        others = [s for s in own if s.edit is None and s.power is None]
        for power in (0.0, *(_POWERS if others else ())):
            queries = self._folds(others, power) if power else Folds()
            for more in (Folds(), numbers)[: 2 if numbers else 1]:
                yield Folds((*pinned, *queries, *more))

    def _folds(self, sites: Sequence[Site], power: float) -> Folds:
        """What weights take over at some sites; the same weights once."""
        found: dict[str, Fold] = {}
        for site in sites:
            for part in self._parts.get(site.node, ()):
                exponent = (power if site.power is None else site.power) * part.share
                factor = (site.new / site.old) ** exponent
                found.setdefault(part.name, part.fold(factor))
        return Folds(found.values())

    @cached_property
    def _parts(self) -> dict[str, list[Part]]:
        """By site, the parts of tensors that take its factor; sites without such parts are left out."""
        if not self._sites:
            return {}
        if on_meta(self._small.module):
            return {s.node: [] for s in self._sites}
        wanted = {s.node: s for s in self._sites}
        nodes = {n.name: n for n in self._small.nodes}
        named = self._small.module.named_parameters(remove_duplicate=False)
        parameters = {name for name, _ in named}
        operands = {
            name: [Operand(nodes[x], parameters) for x in site.operands]
            for name, site in wanted.items()
        }
        others = {
            name: [Operand(x, parameters) for x in other_factors(pair[0])]
            for name, pair in operands.items()
        }
        probe = Probe(
            self._small, [x for several in (operands, others) for o in several.values() for x in o]
        )
        with seeded(0):
            probe.evaluate(self._small.args, self._small.kwargs)
        found: dict[str, list[Part]] = {}
        for name, site in wanted.items():
            first, *second = (self._located(x, site) for x in operands[name])
            back = [x.taken_back() for x in others[name]]
            if first is not None and None not in back:
                shared = [p.key for p in first] in [[p.key for p in x] for x in second if x]
                found[name] = [replace(p, share=0.5 if shared else 1.0) for p in first]
                found[name] += [p for p in back if p is not None]
        return found

    def _located(self, operand: Operand, site: Site) -> list[Part] | None:
        """The positions of parameters of which an operand is made; None where it is not proportional to them."""
        if not operand.proportional:
            return None
        first = {n: key for key, names in self._axes.names.items() for n in names}
        found = []
        for name, reached in operand.reached.items():
            labels = self._axes.params[first.get(name, name)]
            axes = [i for i, x in enumerate(labels) if _has(x, site.units)]
            if len(axes) != 1:
                return None
            along = reached.movedim(axes[0], 0).reshape(reached.shape[axes[0]], -1).any(1)
            found.append(Part(name, (axes[0], np.flatnonzero(along.numpy()))))
        return found or None


def _sites(plan: Plan, program: Program, axes: Axes) -> Iterator[Site]:
    """The sites of a program whose summed axis is cut."""
    gone = np.zeros(axes.n_units, bool)
    gone[plan.removed] = True
    pinned = {e.node: e for e in plan.edits if isinstance(e, SetArgument) and e.argument == "scale"}
    given, tensors = _depending(program), program.tensors()
    for node in program.nodes:
        yield from _scaled_by_number(node, axes, gone, tensors)
        summed = axes.marks[node].silenced if node in axes.marks else []
        pair = [x for x in node.all_input_nodes if _sums(axes.nodes.get(x), summed)]
        if len(summed) < 2 or not pair or not all(x in given for x in pair):
            continue
        for label in summed:
            lost = int(axes.removed(label, gone).sum())
            if lost:
                units = np.unique(np.concatenate(axes.final(label).columns))
                names = (pair[0].name, pair[:2][-1].name)
                edit = pinned.get(node.name)
                yield Site(node.name, names, len(label), len(label) - lost, units[units != 0], edit)
                break


def _scaled_by_number(
    node: fx.Node, axes: Axes, gone: BoolArray, tensors: Mapping[str, Tensor]
) -> Iterator[Site]:
    """The site of a product with a number that is a power of the length of an axis.

    So T5 scales its last states, and Gemma its embeddings, with a number in a buffer.
    """
    sign = {"aten.mul.Tensor": 1.0, "aten.div.Tensor": -1.0}.get(str(node.target))
    x, number = (node.args[0], _number_of(node.args[1], tensors)) if sign else (None, None)
    labels = axes.nodes.get(x)
    if sign is None or not isinstance(number, int | float) or not isinstance(labels, tuple):
        return
    for label in labels:
        lost = int(axes.removed(label, gone).sum())
        powers = [
            p for p in (-1.0, -0.5, 0.5, 1.0) if isclose(number, len(label) ** p, rel_tol=AGREE)
        ]
        if lost and powers:
            units = np.unique(np.concatenate(axes.final(label).columns))
            sizes = len(label), len(label) - lost
            power = -sign * powers[0]
            yield Site(node.name, (str(x),), *sizes, units[units != 0], power=power)
            return


def _number_of(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A number, or that of a tensor without axes, in whatever type it is used."""
    while isinstance(value, fx.Node) and str(value.target) in _CASTS:
        value = value.args[0]
    held = tensors.get(str(value.target)) if isinstance(value, fx.Node) else None
    if held is None:
        return value
    return float(held) if held.dim() == 0 and not held.is_meta else None


def _depending(program: Program) -> set[Any]:
    """The nodes that depend on an input."""
    found: set[Any] = set()
    for node in program.nodes:
        if node.op == "placeholder" or any(x in found for x in node.all_input_nodes):
            found.add(node)
    return found


def _sums(labels: Any, summed: Sequence[Label]) -> bool:
    """Whether one of the axes of an operand is summed over."""
    return isinstance(labels, tuple) and any(x is y for x in labels for y in summed)


def _has(label: Label, units: IntArray) -> bool:
    return any(np.isin(column, units).any() for column in label.columns)
