"""Finds the sections of a graph that lie between two activation functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fxprune.graph.program import Program
from fxprune.structure.activations import find_activations
from fxprune_passes.insert.places.weighted import weight_of


@dataclass(frozen=True, eq=False)
class Section:
    """The nodes from one activation function to the next, with the weighted layer between them.

    Attributes:
        start: the value that the section reads; None where it can have no shortcut.
        end: the output of the activation function that ends it.
        weight: the name of the weight of its layer.
        why: why it can have no shortcut; "" where it can.
    """

    start: fx.Node | None
    end: fx.Node
    weight: str
    why: str = ""

    @property
    def path(self) -> str:
        """The module path of the weight."""
        return self.weight.rpartition(".")[0]


def find_sections(program: Program) -> Iterator[Section]:
    """The sections that end at an activation function and contain a weighted layer, in execution order."""
    found = list(find_activations(program))
    ends = {one.node for one in found}
    for one in found:
        yield from _before(one.source, one.node, ends)


def _before(node: fx.Node, end: fx.Node, ends: set[fx.Node]) -> Iterator[Section]:
    """The section from the preceding activation function to a value, if it contains a weighted layer."""
    weights: list[str] = []
    why = ""
    while node not in ends:
        if weight := weight_of(node):
            weights.append(weight)
        computed = [n for n in node.all_input_nodes if n.op != "get_attr"]
        data = [n for n in node.users if not str(n.target).startswith("aten.sym_")]
        if node.op == "placeholder":
            why = "no activation function precedes it"
            break
        if len(data) > 1 or len(computed) != 1:
            why = f"node {node.name} has other readers, or is computed from several values"
            break
        node = computed[0]
    if len(weights) > 1:
        why = f"it contains {len(weights)} weighted layers: {', '.join(reversed(weights))}"
    if weights:
        yield Section(None if why else node, end, weights[-1], why)
