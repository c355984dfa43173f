"""What a factor goes into: the parameters of which an operand of a product is made, found by differentiating."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import IntArray
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import Program
from fxprune.write_back.fold import Fold

Tensor = torch.Tensor
AGREE = 1e-6  # relative error up to which two numbers count as the same
_OFFSETS = (0.0, 1.0)  # of the weights of norms, which some multiply by 1 + weight
# What adds its operands, or passes one of them on: behind another operator, its parameter is the nearest.
_PASSING = ("aten.add.Tensor", "aten.cat.default", "aten.stack.default", "aten.sub.Tensor")


@dataclass(frozen=True, eq=False)
class Part:
    """A parameter that takes over a factor.

    Attributes:
        name: of the parameter.
        along: the axis and its positions that are multiplied; None for all of the parameter.
        share: of the exponent of the factor.
        offset: what the forward adds to the parameter first.
    """

    name: str
    along: tuple[int, IntArray] | None
    share: float = 1.0
    offset: float = 0.0

    @property
    def key(self) -> tuple[str, int, bytes]:
        axis, positions = self.along or (-1, np.zeros(0, np.int64))
        return self.name, axis, positions.tobytes()

    def fold(self, factor: float) -> Fold:
        path, _, tensor = self.name.rpartition(".")
        return Fold(path, tensor, factor, self.offset, {}, self.along)


class Operand:
    """One of the activations that attention multiplies, and the nearest parameters of which it is made.

    Attributes:
        node: that returns it.
        params: their names.
        between: the nodes from these to the operand.
        proportional: whether the operand grows as these do, as far as it has been probed.
        reached: by name, which numbers of a parameter it depends on.
        alone: those to one of which it is proportional, the others being as they are -> what is added to that first.
    """

    def __init__(self, node: fx.Node, parameters: Collection[str]) -> None:
        self.node = node
        self.params: set[str] = set()
        self.between: set[fx.Node] = set()
        self.proportional = False
        self.reached: dict[str, Tensor] = {}
        self.alone: dict[str, float] = {}
        waiting = [node]
        while waiting:
            here = waiting.pop()
            if here in self.between or here.op != "call_function":
                continue
            self.between.add(here)
            own = [x for x in here.all_input_nodes if x.op == "get_attr"]
            named = {str(x.target) for x in own} & set(parameters)
            self.params |= named
            if not named or str(here.target) in _PASSING:
                waiting += [x for x in here.all_input_nodes if x not in own]

    def probe(self, value: Tensor, leaves: dict[str, Tensor]) -> None:
        """Learns on which numbers the operand depends, and whether it is proportional to them."""
        mine = {n: x for n, x in leaves.items() if n in self.params}
        if not value.requires_grad or len(mine) < len(self.params):
            return
        weights = torch.rand_like(value) + 0.5
        target = (value * weights).sum()
        slopes = torch.autograd.grad(target, [*mine.values()], allow_unused=True, retain_graph=True)
        found = {n: g for n, g in zip(mine, slopes, strict=True) if g is not None}
        made = sum(float((mine[n].detach() * g).sum()) for n, g in found.items())
        size = float((value.detach().abs() * weights).sum())
        self.proportional = abs(made - float(target.detach())) <= AGREE * size
        self.reached = {n: g != 0 for n, g in found.items()}
        for name, offset in product(found, _OFFSETS):
            made = float(((mine[name].detach() + offset) * found[name]).sum())
            if abs(made - float(target.detach())) <= AGREE * size:
                self.alone[name] = offset

    def taken_back(self) -> Part | None:
        """The part that takes a factor back from the operand; None where there is none."""
        return next((Part(n, None, -1.0, offset) for n, offset in self.alone.items()), None)


class Probe(Evaluator):
    """Runs a program and differentiates operands by the parameters that they are made of."""

    def __init__(self, program: Program, operands: Sequence[Operand]) -> None:
        super().__init__(program, torch.float64)
        self._operands: dict[fx.Node, list[Operand]] = {}
        for operand in operands:
            self._operands.setdefault(operand.node, []).append(operand)
        self._params = set[str]().union(*(o.params for o in operands))
        self._between = set[fx.Node]().union(*(o.between for o in operands))
        self._leaves: dict[str, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in self._params:
            return super().get_attr(target, args, kwargs)
        if target not in self._leaves:
            value = super().get_attr(target, args, kwargs)
            self._leaves[target] = value.detach().clone().requires_grad_()
        return self._leaves[target]

    def compute(self, node: fx.Node) -> Any:
        """Computes the value of one node; beyond the operands, nothing is differentiated."""
        if node not in self._between:
            return super().compute(node)
        with torch.enable_grad():
            value = super().compute(node)
            for operand in self._operands.get(node, ()):
                if isinstance(value, Tensor):
                    operand.probe(value, self._leaves)
        return value


def other_factors(operand: Operand) -> list[fx.Node]:
    """What the parameters of an operand are multiplied with elsewhere, as the embedding of words is for the logits."""
    found = []
    for source in operand.between:
        own = [x for x in source.all_input_nodes if str(x.target) in operand.params]
        for user in [u for x in own for u in x.users if u not in operand.between]:
            found += [x for x in user.all_input_nodes if x.op != "get_attr"][:1]
    return found
