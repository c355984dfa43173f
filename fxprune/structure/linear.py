"""Finds linear-only regions, runs of nodes that are affine as a whole, and why each of them ends.

Two weighted layers in one region can be replaced by one: layers between which an activation was removed
can be fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from tabulate import tabulate
from torch import fx

from fxprune.graph.program import Program, module_path
from fxprune.structure.affine import is_weighted, why_not_affine
from fxprune.structure.paths import Flow


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes that together compute one affine function of their inputs, with a single output.

    Attributes:
        nodes: the nodes in execution order; except for the output, only nodes of the region read them.
        inputs: the values from outside that vary with the network's input, in execution order.
        output: the last node.
        layers: the convolutions and matrix products with a parameter, in execution order.
        ends: where and why the region stops: nodes outside that it reads, then nodes outside that read it.
    """

    nodes: tuple[fx.Node, ...] = field(repr=False)
    inputs: tuple[fx.Node, ...]
    output: fx.Node
    layers: tuple[fx.Node, ...]
    ends: tuple[tuple[fx.Node, str], ...]

    @property
    def fusable(self) -> bool:
        """Whether the region holds at least two weighted layers, and is thus a candidate for fusion."""
        return len(self.layers) > 1


@dataclass(frozen=True, eq=False)
class Regions(Sequence[Region]):
    """The linear-only regions of a program that hold a weighted layer; prints as a table.

    Attributes:
        name: the class of the network.
        regions: the regions in the order of their outputs.
    """

    name: str
    regions: tuple[Region, ...]

    def __len__(self) -> int:
        return len(self.regions)

    @overload
    def __getitem__(self, at: int) -> Region: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Region, ...]: ...

    def __getitem__(self, at: int | slice) -> Region | tuple[Region, ...]:
        return self.regions[at]

    def __str__(self) -> str:
        lines = [
            (
                _names(r),
                len(r.layers),
                len(r.nodes),
                _ends_text(r, before=True),
                _ends_text(r, before=False),
            )
            for r in self.regions
        ]
        count = "1 linear-only region" if len(self) == 1 else f"{len(self)} linear-only regions"
        title = f"{self.name}: {count}, {sum(r.fusable for r in self.regions)} with layers to fuse"
        header = ["layers", "weighted", "nodes", "begins after", "ends at"]
        return f"{title}\n{tabulate(lines, header, 'simple')}"


def _names(region: Region, shown: int = 3) -> str:
    names = [module_path(n) or n.name for n in region.layers]
    more = len(names) - shown
    return ", ".join(names if more <= 0 else [*names[:shown], f"{more} more"])


def _ends_text(region: Region, *, before: bool) -> str:
    inputs = set(region.inputs)
    reasons = (why for n, why in region.ends if (n in inputs) is before)
    return "; ".join(dict.fromkeys(why.partition(":")[0] for why in reasons))


def find_linear_regions(program: Program) -> Regions:
    """Finds the maximal runs of nodes that are affine in their inputs and hold a weighted layer.

    A value that is read inside and outside a run is the run's output, since it is needed even if the layers
    around it are fused. Each affine node therefore belongs to one run only. A value computed from parameters
    and constants alone is a coefficient and belongs to no run.

    The run time is linear in nodes and edges.
    """
    flow = Flow.of(program)
    why = why_not_affine(flow)
    root = _roots(flow, why)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in flow.order:
        if node in root:
            members.setdefault(root[node], []).append(node)
    every = (_region(output, nodes, flow, why, root) for output, nodes in members.items())
    found = [r for r in every if r.layers]
    found.sort(key=lambda r: flow.position[r.output])
    return Regions(program.name, tuple(found))


def _roots(flow: Flow, why: dict[fx.Node, str]) -> dict[fx.Node, fx.Node]:
    """Returns the output of the run that each affine node belongs to."""
    root: dict[fx.Node, fx.Node] = {}
    for node in reversed(flow.order):
        if why.get(node) == "":
            ends = {root.get(r) for r in flow.readers[node]}
            only = ends.pop() if len(ends) == 1 else None
            root[node] = only or node
    return root


def _region(
    output: fx.Node,
    nodes: list[fx.Node],
    flow: Flow,
    why: dict[fx.Node, str],
    root: dict[fx.Node, fx.Node],
) -> Region:
    read = dict.fromkeys(s for n in nodes for s in flow.inputs[n])
    inputs = [s for s in read if s in flow.varying and root.get(s) is not output]
    inputs.sort(key=lambda n: flow.position[n])
    ends = [*_begins(inputs, nodes, flow, why), *_stops(output, flow, why)]
    layers = tuple(n for n in nodes if is_weighted(n, flow))
    return Region(tuple(nodes), tuple(inputs), output, layers, tuple(ends))


def _begins(
    inputs: list[fx.Node], nodes: list[fx.Node], flow: Flow, why: dict[fx.Node, str]
) -> Iterator[tuple[fx.Node, str]]:
    """Yields why the run does not begin earlier."""
    inside = set(nodes)
    for source in inputs:
        others = [r for r in flow.readers[source] if r not in inside]
        yield source, why[source] or _another(source, others[0])


def _stops(output: fx.Node, flow: Flow, why: dict[fx.Node, str]) -> Iterator[tuple[fx.Node, str]]:
    """Yields why the run does not continue."""
    readers = flow.readers[output]
    for reader in readers:
        reason = why.get(reader, f"{reader.target} reads its type or layout")
        yield reader, reason or _another(output, next(r for r in readers if r is not reader))


def _another(node: fx.Node, reader: fx.Node) -> str:
    return f"a node outside reads it too: {reader.name} reads {node.name}"
