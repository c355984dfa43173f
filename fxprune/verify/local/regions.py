"""What a rewrite changed, cut out of two programs: regions that have to return the same for the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from fxprune.graph.program import Program
from fxprune.structure.paths import draws
from fxprune.verify.local.matching import Pair

Twin = Callable[[fx.Node], fx.Node | None]
"""From a node of the program before to that of the program after which may be given the same value; None for none."""


@dataclass
class Region:
    """A part of both programs.

    Attributes:
        claims: the values that leave it, and have to agree.
        cuts: the values that enter it; the two are given the same ones.
        before: its nodes in the program before, in order.
        after: its nodes in the program after, in order.
    """

    claims: list[Pair]
    cuts: list[Pair]
    before: list[fx.Node]
    after: list[fx.Node]


class Cutter:
    """Cuts regions out of two programs.

    Args:
        before: the program before.
        after: the program after.
        twin: says at which values may be cut. What the weights alone decide is part of each region that reads it.
    """

    def __init__(self, before: Program, after: Program, twin: Twin) -> None:
        self._place = {n: i for p in (before, after) for i, n in enumerate(p.nodes)}
        self.varying = varying(before) | varying(after)
        pairs = ((n, twin(n)) for n in before.nodes if n in self.varying)
        self._twins = {a: b for a, b in pairs if b is not None and b in self.varying}
        self._partners = {b: a for a, b in self._twins.items()}

    def region(self, claims: list[Pair], whole: frozenset[fx.Node] = frozenset()) -> Region:
        """The region of some claims.

        Args:
            claims: pairs of values that have to agree.
            whole: nodes of the program before that are not to be cut at.
        """
        closed = {a for a, b in claims if self._twins.get(a) is b}
        closed |= {n for n in whole if n.op != "placeholder"}
        cuts: dict[fx.Node, fx.Node] = {}

        def cut(node: fx.Node) -> bool:
            before = self._partners.get(node, node)
            if before in closed or before not in self._twins:
                return False
            cuts[before] = self._twins[before]
            return True

        ours = self._behind((a for a, _ in claims), cut)
        theirs = self._behind((b for _, b in claims), cut)
        return Region(claims, list(cuts.items()), ours, theirs)

    def _behind(self, targets: Iterable[fx.Node], cut: Callable[[fx.Node], bool]) -> list[fx.Node]:
        """What some nodes are computed from, down to the cuts, in order."""
        found: set[fx.Node] = set()
        todo = list(targets)
        while todo:
            node = todo.pop()
            if node not in found and not cut(node):
                found.add(node)
                todo += node.all_input_nodes
        return sorted(found, key=self._place.__getitem__)

    def together(self, claims: Iterable[Pair]) -> list[list[Pair]]:
        """The claims whose regions have a varying node in common, in groups."""
        owner: dict[fx.Node, int] = {}
        parts = [self.region([claim]) for claim in claims]
        group = list(range(len(parts)))

        def root(i: int) -> int:
            while group[i] != i:
                i = group[i]
            return i

        for i, part in enumerate(parts):
            for node in (*part.before, *part.after):
                if node in self.varying:
                    group[root(i)] = root(owner.setdefault(node, i))
        found: dict[int, list[Pair]] = {}
        for i, part in enumerate(parts):
            found.setdefault(root(i), []).extend(part.claims)
        return list(found.values())


def varying(program: Program) -> set[fx.Node]:
    """The nodes whose values depend on an input of the program, or on random numbers."""
    found: set[fx.Node] = set()
    for node in program.nodes:
        if node.op == "placeholder" or draws(node) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
