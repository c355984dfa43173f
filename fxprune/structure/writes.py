"""Writes in place that a captured graph still holds: what reads them, and which of them last."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from torch import fx

from fxprune.capture.inplace import Memory
from fxprune.graph.evaluate import is_mutable


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
    writing = [n for n in graph.nodes if is_mutable(n)]
    memory = Memory(graph) if writing else None
    for node in writing:
        assert memory is not None
        for target in _targets(node):
            members = memory.sharing(target)
            by_memory.setdefault(id(members), (members, []))[1].append(node)
    before: dict[fx.Node, tuple[fx.Node, ...]] = {}
    lasting: set[fx.Node] = set()
    for members, writes in by_memory.values():
        assert memory is not None
        if any(m.op in ("get_attr", "placeholder") for m in members):
            lasting.update(writes)
        _order_readers(members, writes, memory.order, before)
    return Writes(before, frozenset(lasting))


def _targets(node: fx.Node) -> list[fx.Node]:
    """The arguments that a node writes to."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    return [
        value
        for value, a in zip(node.args, schema, strict=False)
        if a.alias_info is not None and a.alias_info.is_write and isinstance(value, fx.Node)
    ]


def _order_readers(
    members: list[fx.Node],
    writes: list[fx.Node],
    place: dict[fx.Node, int],
    before: dict[fx.Node, tuple[fx.Node, ...]],
) -> None:
    """Gives every reader of one memory the last write before it."""
    places = [place[w] for w in writes]
    for reader in {u for m in members for u in m.users}:
        if count := bisect_left(places, place[reader]):
            before[reader] = (*before.get(reader, ()), writes[count - 1])
