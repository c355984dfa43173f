"""Which nodes of a graph may share memory, and which of them are written to."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import fx

from fxprune.torch_private import aliased, higher_order, mutated, overload

_SPLITS = {f"aten::{n}" for n in ("chunk", "split", "split_with_sizes", "tensor_split", "unbind")}


class Memory:
    """Which nodes may share memory: one set per storage, merged at every view.

    The parts of a tensor that is all of its memory, once split, are known to be apart.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self._sets: dict[fx.Node, list[fx.Node]] = {}
        self._whole: set[fx.Node] = set()
        self._parts: dict[fx.Node, tuple[fx.Node, Any]] = {}  # of which split which part
        for node in graph.nodes:
            self._sets[node] = [node]
            sources = _shares_with(node)
            for source in sources:
                self._merge(source, node)
            self._note_part(node, sources)

    def _note_part(self, node: fx.Node, sources: list[fx.Node]) -> None:
        op = overload(node)
        if not sources or (self._whole.issuperset(sources) and op is not None and mutated(op)):
            self._whole.add(node)
        elif node.target is operator.getitem:
            if _splits(sources[0]) and self._whole.issuperset(_shares_with(sources[0])):
                self._parts[node] = sources[0], node.args[1]
        elif len(sources) == 1 and sources[0] in self._parts:
            self._parts[node] = self._parts[sources[0]]

    def sharing(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that may share memory with `node`, itself included."""
        return self._sets[node]

    def apart(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether they belong to different parts of one split tensor."""
        if a not in self._parts or b not in self._parts:
            return False
        (one, part), (two, other) = self._parts[a], self._parts[b]
        return one is two and part != other

    def replaced(self, old: fx.Node, new: fx.Node) -> None:
        """Lets `new` stand where `old` stood."""
        self.order[new] = self.order.pop(old)
        members = self._sets.pop(old)
        members[members.index(old)] = new
        self._sets[new] = members

    def _merge(self, a: fx.Node, b: fx.Node) -> None:
        large, small = self._sets[a], self._sets[b]
        if large is small:
            return
        if len(large) < len(small):
            large, small = small, large
        large += small
        for node in small:
            self._sets[node] = large


def written_memory(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory an operator writes, and those that may share it."""
    writing = writes(graph)
    if not writing:
        return set()
    memory = Memory(graph)
    return {other for node in writing for x in written(node) for other in memory.sharing(x)}


def writes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that write to one of their arguments, in order."""
    return [n for n in graph.nodes if (op := overload(n)) is not None and mutated(op)]


def written(node: fx.Node) -> list[fx.Node]:
    """The arguments that a node writes to."""
    op = overload(node)
    return [] if op is None else _operands(node, op, mutated(op))


def _shares_with(node: fx.Node) -> list[fx.Node]:
    if node.op == "output":
        return []
    if node.target is operator.getitem:
        return _shares_element(node)
    if higher_order(node):
        return list(node.all_input_nodes)
    if (op := overload(node)) is None:
        return [] if node.op == "call_function" else list(node.all_input_nodes)
    return _operands(node, op, aliased(op))


def _splits(node: fx.Node) -> bool:
    """Whether its results are views of parts that have nothing in common."""
    op = overload(node)
    return op is not None and op._schema.name in _SPLITS


def _operands(node: fx.Node, op: Any, numbers: Iterable[int]) -> list[fx.Node]:
    """The nodes among the arguments of these numbers."""
    found: list[fx.Node] = []
    for i in numbers:
        name = op._schema.arguments[i].name
        value = node.args[i] if i < len(node.args) else node.kwargs.get(name)
        fx.node.map_arg(value, found.append)
    return found


def _shares_element(node: fx.Node) -> list[fx.Node]:
    """An output of topk or lstm is memory of its own; one of split is a view."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if (op := overload(source)) is None or aliased(op):
        return [source]
    return [u for u in source.users if u.args[1:] == node.args[1:] and u.target is node.target]
