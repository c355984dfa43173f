"""Compares a smaller program with the silenced original region by region."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.analysis.axes import Axes
from fxprune.graph.program import Program
from fxprune.plan import Plan, Rescale
from fxprune.verify.check import TOLERANCE, Check
from fxprune.verify.local.functions import lengths_to_try, rows_at
from fxprune.verify.local.matching import Matching, Pair
from fxprune.verify.local.obstacles import Obstacles
from fxprune.verify.local.proof import CannotCompareError, Proof, Sides
from fxprune.verify.local.regions import Cutter
from fxprune.verify.local.seen import Seen
from fxprune.verify.noise import noise_of, numbers_of
from fxprune.verify.silenced import Runs


def compare_plan_locally(
    program: Program, axes: Axes, plan: Plan, small: Program, seen: Seen, *, seed: int
) -> Check:
    """Holds every operator of a smaller program against that of the silenced original, in float64.

    Both are given the same random values, the smaller program those at the positions that stay: what is at the others
    has no effect on these in the silenced original. Tensors of one repeated value have noise, the same in both.

    Args:
        program: the original.
        axes: its labels.
        plan: what is removed.
        small: what the plan made of it, or what other rewrites made of that.
        seen: what the values of the original look like.
        seed: of the noise.

    Raises:
        CannotCompareError: the two cannot be cut, or differ somewhere on random values.
    """
    return _LocalPlan(program, axes, plan, small, seen, seed).check()


class _LocalPlan:
    def __init__(
        self, program: Program, axes: Axes, plan: Plan, small: Program, seen: Seen, seed: int
    ) -> None:
        noise = noise_of(numbers_of(program), seed)
        self._program, self._small, self._seen = program, small, seen
        self._runs = Runs(program, axes, plan, small, torch.float64, noise)
        self._silenced = self._runs.silenced()
        self._matching = Matching(program, small)
        self._obstacles = Obstacles(program, small)
        if why := self._matching.objection or self._obstacles.of_all():
            raise CannotCompareError(why)
        self._named = {n.name: n for n in small.nodes}
        self._rescaled = {e.node for e in plan.edits if isinstance(e, Rescale)}

    def check(self) -> Check:
        lengths = lengths_to_try(self._program)[-1]
        proof = Proof(
            Sides(
                self._silenced,
                self._runs.small(),
                self._feeds,
                self._kept,
                lambda _: TOLERANCE[torch.float64],
            ),
            Cutter(self._program, self._small, self._twin),
            self._obstacles,
            self._seen,
            lengths,
        )
        outputs = self._program.graph.output_node(), self._small.graph.output_node()
        rows = rows_at(self._program, lengths)
        return proof.check(outputs, against="the silenced original", batches=rows)

    def _twin(self, node: fx.Node) -> fx.Node | None:
        """The node of the same name and operator, where it is known which positions of its value stay."""
        other = self._named.get(node.name)
        if other is None or (node.op, node.target) != (other.op, other.target):
            return None
        if node.name in self._rescaled or not self._seen.knows(node) or not _ends_step(node):
            return None
        known = isinstance(self._runs.axes.nodes.get(node), tuple) or node.op == "placeholder"
        if not known and _is_number(node):
            known = str(node.meta["val"]) == str(other.meta.get("val"))
        return other if known else None

    def _kept(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        kept = self._runs.kept(node, value)
        return value if kept is None else kept

    def _feeds(self, pair: Pair) -> list[Pair] | None:
        """What is fed to two nodes that do the same and have nothing to do with what is removed."""
        node = pair[0]
        if not self._matching.agrees(*pair):
            return None
        near = (node, *node.all_input_nodes)
        if node.op == "output" or (
            not self._silenced.touches(node) and all(map(self._whole, near))
        ):
            return self._matching.fed(*pair)
        return None

    def _whole(self, node: fx.Node) -> bool:
        labels = self._runs.axes.nodes.get(node)
        if labels is None:
            return _is_number(node)
        return all(self._silenced.keep(x) is None for x in pytree.tree_leaves(labels))


def _ends_step(node: fx.Node) -> bool:
    """Whether a node is worth a cut: it multiplies by weights, or brings several values together."""
    if node.op != "call_function" or _is_number(node):
        return True
    values = [x for x in node.all_input_nodes if not _is_number(x)]
    return len(values) > 1


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), int | float | torch.SymInt | torch.SymFloat)
