"""The in-place writes that a captured graph still holds: what reads them, and which of them outlast the run."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from torch import fx

from fxprune.graph.memory import Memory, writes, written


@dataclass(frozen=True)
class Writes:
    """The nodes of a graph that write to memory.

    Attributes:
        before: by node that reads memory that was written to, the last write before it to each memory.
        lasting: writes to buffers, parameters and inputs, which are seen after the run.
    """

    before: dict[fx.Node, tuple[fx.Node, ...]]
    lasting: frozenset[fx.Node]


def find_writes(graph: fx.Graph) -> Writes:
    """The writes of a graph; a write also reads what was written before, so they form chains."""
    by_memory: dict[int, tuple[list[fx.Node], list[fx.Node]]] = {}
    if not (writing := writes(graph)):
        return Writes({}, frozenset())
    memory = Memory(graph)
    for node in writing:
        for target in written(node):
            members = memory.sharing(target)
            by_memory.setdefault(id(members), (members, []))[1].append(node)
    before: dict[fx.Node, tuple[fx.Node, ...]] = {}
    lasting: set[fx.Node] = set()
    for members, nodes in by_memory.values():
        if any(m.op in ("get_attr", "placeholder") for m in members):
            lasting.update(nodes)
        _order_readers(members, nodes, memory.order, before)
    return Writes(before, frozenset(lasting))


def _order_readers(
    members: list[fx.Node],
    nodes: list[fx.Node],
    place: dict[fx.Node, int],
    before: dict[fx.Node, tuple[fx.Node, ...]],
) -> None:
    """Assigns to every reader of one memory the last of the writing nodes before it."""
    places = [place[n] for n in nodes]
    for reader in {u for m in members for u in m.users}:
        if count := bisect_left(places, place[reader]):
            before[reader] = (*before.get(reader, ()), nodes[count - 1])
