"""The flow of values through a captured graph: which nodes read which, what varies, and what serves what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx, nn

from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program
from fxprune.structure.writes import Writes, find_writes

# These read how long or of what type a tensor is, not what is in it.
_SIZES = {"size", "numel", "dim", "sym_size", "sym_numel", "sym_stride", "sym_storage_offset"}
_CHECKS = ("_assert", "sym_constrain_range")
_LIKE = (
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("randint_like", "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
)
_TYPED = {**dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full"), 0), "type_as": 1}
_LIKE_OTHER = ("expand_as", "view_as", "reshape_as", "type_as")


def operator(node: fx.Node) -> str:
    """Returns the operator's name, `conv2d` for `aten.conv2d.padding`; "" for a call that is not an ATen operator."""
    if not is_operator(node) or node.target.namespace != "aten":  # type: ignore[union-attr]
        return ""
    return str(node.target._opname)  # type: ignore[union-attr]


def reads_sizes(node: fx.Node) -> bool:
    """Returns whether a node reads only the sizes of its arguments, for later shapes or to check them."""
    name = operator(node)
    return name in _SIZES or name.startswith(_CHECKS)


def type_source(node: fx.Node) -> fx.Node | None:
    """Returns the argument of which a node reads only dtype and device, if there is one.

    Of `x.type_as(x)` that is none: x is the value too.
    """
    place = _TYPED.get(operator(node))
    if place is None or node.args[place] in (*node.args[:place], *node.args[place + 1 :]):
        return None
    found = node.args[place]
    return found if isinstance(found, fx.Node) else None


def values_read(node: fx.Node) -> tuple[fx.Node, ...]:
    """Returns the arguments whose elements a node computes with, not those of which it reads sizes or types."""
    name = operator(node)
    if reads_sizes(node) or name in _LIKE:
        return ()
    if name in _LIKE_OTHER:
        return tuple(n for n in node.args[:1] if isinstance(n, fx.Node))
    return tuple(node.all_input_nodes)


def value_readers(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes that compute with the elements of a value, not those that read its size or type."""
    return [user for user in node.users if node in values_read(user)]


def draws(node: fx.Node) -> bool:
    """Returns whether a node's result is random."""
    return is_operator(node) and torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]


@dataclass(frozen=True, eq=False)
class Flow:
    """The live part of a graph.

    A value of which only sizes are read is dead here; a value whose type or layout is read is live. A node
    that reads memory to which another node has written, perhaps through a view, also reads that node.

    Attributes:
        order: the live nodes in execution order.
        inputs: by node, the nodes with whose elements it computes.
        readers: by node, the live nodes that read it, in execution order.
        written: by node that reads written memory, the last write before it to each memory.
        varying: the nodes whose elements depend on those of an input of the network.
        trained: the nodes computed from parameters and constants only, with at least one parameter.
        parameters: the get_attr nodes of parameters, with the parameters.
    """

    order: tuple[fx.Node, ...]
    inputs: dict[fx.Node, tuple[fx.Node, ...]]
    readers: dict[fx.Node, tuple[fx.Node, ...]]
    written: dict[fx.Node, tuple[fx.Node, ...]]
    varying: frozenset[fx.Node]
    trained: frozenset[fx.Node]
    parameters: dict[fx.Node, nn.Parameter]

    @classmethod
    def of(cls, program: Program) -> Flow:
        """Computes the flow of a program."""
        writes = find_writes(program.graph)
        readers = _live_readers(program.graph, writes)
        order = tuple(n for n in program.nodes if n in readers)
        inputs = {n: _inputs(n, writes) for n in order}
        named = dict(program.module.named_parameters(remove_duplicate=False))
        own = {n: named[str(n.target)] for n in order if n.op == "get_attr" and n.target in named}
        varying = _reached(order, inputs, (n for n in order if n.op == "placeholder"))
        trained = _reached(order, inputs, own) - varying
        return cls(order, inputs, readers, writes.before, varying, trained, own)

    @cached_property
    def position(self) -> dict[fx.Node, int]:
        """The position of each live node in the order."""
        return {n: i for i, n in enumerate(self.order)}

    def dependence(
        self, sources: Iterable[fx.Node]
    ) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
        """Finds which of some nodes every node depends on, itself included, in one sweep for all of them.

        Returns:
            The bit of each source, and the combined bits of every node.
        """
        bit = {n: 1 << i for i, n in enumerate(dict.fromkeys(sources))}
        bits: dict[fx.Node, int] = {}
        for node in self.order:
            found = bit.get(node, 0)
            for source in self.inputs[node]:
                found |= bits.get(source, 0)
            bits[node] = found
        return bit, bits


def _inputs(node: fx.Node, writes: Writes) -> tuple[fx.Node, ...]:
    """Returns what a node computes with, including the last writes to the memory that it reads."""
    read = values_read(node)
    return (*read, *writes.before.get(node, ())) if read else ()


def _live_readers(graph: fx.Graph, writes: Writes) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Returns the live nodes by their readers; a node is live if an output or a lasting write depends on it."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        if node.op == "output" or node in writes.lasting:
            found.setdefault(node, [])
        if node in found and not reads_sizes(node):
            for source in dict.fromkeys((*node.all_input_nodes, *_inputs(node, writes))):
                found.setdefault(source, []).append(node)
    return {n: tuple(reversed(users)) for n, users in found.items()}


def _reached(
    order: tuple[fx.Node, ...],
    inputs: dict[fx.Node, tuple[fx.Node, ...]],
    sources: Iterable[fx.Node],
) -> frozenset[fx.Node]:
    found = set(sources)
    found.update(n for n in order if n in found or not found.isdisjoint(inputs[n]))
    return frozenset(found)


class PostDominators:
    """For every live value, the nodes that serve only that value: they are dead if the value is not read.

    A node post-dominates another if every path from the other node to an output or a written buffer leads
    through it. In an acyclic graph, the nearest such node is the nearest common ancestor of the readers in
    the tree built so far. Ancestors are found in logarithmic time with jump pointers (Myers, "An applicative
    random-access stack", 1983). Apart from that logarithm, the run time is linear in nodes and edges.
    """

    def __init__(self, flow: Flow) -> None:
        self._order = flow.order
        self._place = flow.position
        n = len(flow.order)
        # The last place is that of a node after all: what outputs and written buffers lead to.
        self._parent = [n] * (n + 1)
        self._depth = [0] * (n + 1)
        self._jump = [n] * (n + 1)
        for i in reversed(range(n)):
            self._insert(i, [self._place[r] for r in flow.readers[flow.order[i]]] or [n])
        self._number()

    def _insert(self, place: int, readers: list[int]) -> None:
        parent = readers[0]
        for other in readers[1:]:
            parent = self._common(parent, other)
        jump = self._jump[parent]
        far = (
            self._depth[parent] - self._depth[jump]
            == self._depth[jump] - self._depth[self._jump[jump]]
        )
        self._parent[place] = parent
        self._depth[place] = self._depth[parent] + 1
        self._jump[place] = self._jump[jump] if far else parent

    def _common(self, a: int, b: int) -> int:
        """Returns the nearest common ancestor."""
        if self._depth[a] < self._depth[b]:
            a, b = b, a
        while self._depth[a] > self._depth[b]:
            a = self._jump[a] if self._depth[self._jump[a]] >= self._depth[b] else self._parent[a]
        while a != b:
            step = self._parent if self._jump[a] == self._jump[b] else self._jump
            a, b = step[a], step[b]
        return a

    def _number(self) -> None:
        """Numbers the tree so that the nodes that a node post-dominates have consecutive numbers."""
        size = [1] * len(self._parent)
        for i in range(len(self._order)):
            size[self._parent[i]] += size[i]
        self._first = [0] * len(self._parent)
        free = [1] * len(self._parent)
        for i in reversed(range(len(self._order))):
            parent = self._parent[i]
            self._first[i] = free[parent]
            free[parent] += size[i]
            free[i] = self._first[i] + 1
        self._size = size

    def number(self, node: fx.Node) -> int:
        """Returns the number of a node."""
        return self._first[self._place[node]]

    def run(self, node: fx.Node) -> range:
        """Returns the numbers of a node and of all nodes that it post-dominates."""
        place = self._place[node]
        return range(self._first[place], self._first[place] + self._size[place])
