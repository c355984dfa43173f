"""Finds residual blocks by the paths of the graph, not by the names of modules.

A block lies between a value `e` and an operand `b` of an addition whose other operand is a view of `e`:
the identity, or `e` after a cast, a reshape or one linear projection (He et al., arXiv 1512.03385,
section 3.2). Nothing outside reads a value of the block, so that if `b` is set to 0 the whole branch is
dead and only the shortcut is left.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import overload

import torch
from tabulate import tabulate
from torch import fx

from fxprune.cost import node_macs
from fxprune.graph.operands import get_argument
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes
from fxprune.structure.names import class_of, unique_paths
from fxprune.structure.paths import Flow, PostDominators, operator
from fxprune.structure.shortcut import View, views


@dataclass(frozen=True, eq=False)
class Block:
    """One residual block, `add(shortcut, branch)`, in which both operands depend on `entry`.

    Attributes:
        add: the addition.
        branch: the operand that a gate would multiply.
        shortcut: the other operand.
        entry: the value that both operands depend on.
        projection: the nodes on the shortcut between the entry and the addition; empty for an identity.
        nodes: the nodes of the branch: those that depend on the entry and lead to `branch`, which is included.
        path: a readable name, unique in the program.
        kind: the class of the module that the block belongs to, "" if there is none.
        parent: the innermost block whose branch contains this one.
        parameters: the names of the parameters that are removed with the block because nothing else uses them.
        size: the number of elements of these parameters.
        macs: the multiply-accumulates that are removed with the block, at the example's batch size.
    """

    add: fx.Node
    branch: fx.Node
    shortcut: fx.Node
    entry: fx.Node
    projection: tuple[fx.Node, ...]
    nodes: frozenset[fx.Node] = field(repr=False)
    path: str = ""
    kind: str = ""
    parent: Block | None = field(default=None, repr=False)
    parameters: tuple[str, ...] = field(default=(), repr=False)
    size: int = 0
    macs: int = 0

    @property
    def depth(self) -> int:
        """The number of blocks that contain this one."""
        depth, around = 0, self.parent
        while around is not None:
            depth, around = depth + 1, around.parent
        return depth


@dataclass(frozen=True, eq=False)
class Blocks(Sequence[Block]):
    """The residual blocks of a program, each after the block that contains it; prints as a tree.

    Attributes:
        name: the class of the network.
        blocks: the blocks in the order of the graph.
        size: the number of elements of all parameters of the network.
        macs: the multiply-accumulates of the network, at the example's batch size.
        size_inside: the number of elements of the parameters that belong to blocks.
        macs_inside: the multiply-accumulates that belong to blocks.
        left: additions that close no block because a value of the branch is read elsewhere, with that value.
    """

    name: str
    blocks: tuple[Block, ...]
    size: int
    macs: int
    size_inside: int
    macs_inside: int
    left: tuple[tuple[fx.Node, fx.Node], ...] = ()

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, at: int) -> Block: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Block, ...]: ...

    def __getitem__(self, at: int | slice) -> Block | tuple[Block, ...]:
        return self.blocks[at]

    def __str__(self) -> str:
        lines = [
            ("  " * b.depth + b.path, b.kind, _shortcut_text(b), f"{b.size:,}", f"{b.macs:,}")
            for b in self.blocks
        ]
        lines += [
            ("in blocks", "", "", f"{self.size_inside:,}", f"{self.macs_inside:,}"),
            ("network", self.name, "", f"{self.size:,}", f"{self.macs:,}"),
        ]
        header = ["block", "class", "shortcut", "parameters", "MACs"]
        align = ("left", "left", "left", "right", "right")
        table = tabulate(
            lines, header, "simple", colalign=align, disable_numparse=True, preserve_whitespace=True
        )
        *body, inside, total = table.splitlines()
        count = "1 residual block" if len(self) == 1 else f"{len(self)} residual blocks"
        return "\n".join([f"{self.name}: {count}", *body, body[1], inside, total])


def _shortcut_text(block: Block) -> str:
    return " ".join(dict.fromkeys(map(operator, block.projection))) or "identity"


def find_blocks(program: Program, *, parallel: bool = False) -> Blocks:
    """Finds the residual blocks of a program, including nested ones.

    An addition closes a block under these conditions. Its operands have equal shapes. One operand, traced
    back through casts, dropout, reshapes, resampling and at most one convolution or linear layer with its
    norm, is a value `e` on which the other operand, `b`, depends. Between `e` and `b` a parameter is used,
    and no live node except the addition reads a value from there. Reading a size is no dependence. If
    either operand could be the branch, the one with more parameters is.

    Parallel branches: in `a(x) + m(x) + x`, the two branches form one block. In `x + a(x) + m(x)`, the sum
    `x + a(x)` is not a view of `x`, so that `a` is a block, but `m` is one only if `parallel` is set. If
    both branches begin with a shared norm, neither is a block.

    The run time is linear in the nodes, the edges and the sizes of the blocks, plus one bit operation per
    pair of a node and an addition.

    Args:
        program: a captured network.
        parallel: whether a shortcut may lead through the addition of another block.

    Returns:
        The blocks, each after the block that contains it.
    """
    return _Search(program, parallel).blocks()


@dataclass(frozen=True)
class _Inner:
    """The nodes between an entry and a branch, and the values they read from outside except constants."""

    entry: fx.Node
    nodes: frozenset[fx.Node]
    outside: tuple[fx.Node, ...]


class _Search:
    """The state of the search for the blocks of a program."""

    def __init__(self, program: Program, parallel: bool) -> None:
        self._program = program
        self._parallel = parallel
        self._flow = Flow.of(program)
        self._tree = PostDominators(self._flow)
        self._cost = _Cost(program, self._flow, self._tree)
        self._left: dict[fx.Node, fx.Node] = {}

    def blocks(self) -> Blocks:
        found = list(self._found())
        found.sort(key=self._begins)
        found = [self._priced(b) for b in found]
        names = unique_paths([(b.add, b.nodes) for b in found], self._flow, self._program.name)
        classes = class_of(self._flow.order)
        found = [
            replace(b, path=name, kind=classes.get(scope, ""))
            for b, (name, scope) in zip(found, names, strict=True)
        ]
        totals = self._cost.totals(self._program.name, self._nested(found))
        return replace(totals, left=tuple(self._left.items()))

    def _begins(self, block: Block) -> tuple[int, int]:
        """Returns where the branch of a block begins; sorts the longer of two blocks first."""
        place = self._flow.position
        readers = (r for r in self._flow.readers[block.entry] if r in block.nodes)
        return min(place[r] for r in readers), -place[block.add]

    def _found(self) -> Iterator[Block]:
        """Yields the block that each addition closes, the larger one if there are two."""
        pairs = {n: list(_operands(n)) for n in _sums(self._flow)}
        seen = {s: list(views(s, self._flow)) for p in pairs.values() for s, _ in p}
        self._bit, self._bits = self._flow.dependence(v.value for vs in seen.values() for v in vs)
        self._inner: dict[fx.Node, _Inner] = {}
        closed: dict[fx.Node, Block] = {}
        for add, operands in pairs.items():
            choices = (self._block(add, s, b, _extended(seen[s], closed)) for s, b in operands)
            if known := [c for c in choices if c is not None]:
                best = max(known, key=lambda c: self._cost.size(c.branch))
                self._left.pop(add, None)
                yield best
                if self._parallel:
                    closed[add] = best

    def _block(
        self, add: fx.Node, shortcut: fx.Node, branch: fx.Node, seen: Iterable[View]
    ) -> Block | None:
        """Returns the block that an addition closes, given which operand is its branch."""
        below = self._bits[branch]
        view = next((v for v in seen if self._bit[v.value] & below), None)
        if view is None or view.value is branch or self._flow.readers[branch] != (add,):
            return None
        nodes = self._between(view.value, branch, add)
        if nodes is None or not self._holds_parameters(nodes, view.value):
            return None
        if view.cut and not self._reads_whole(view.value, nodes):
            return None
        return Block(add, branch, shortcut, view.value, view.path, nodes)

    def _between(self, entry: fx.Node, branch: fx.Node, add: fx.Node) -> frozenset[fx.Node] | None:
        """Returns the nodes that depend on the entry and lead to the branch; None if a value is read elsewhere.

        A block found earlier that depends on the entry as a whole is included as a whole.
        """
        bit, inside = self._bit[entry], self._tree.run(branch)
        found, outside = {branch}, set()
        todo = list(self._flow.inputs[branch])
        while todo:
            source = todo.pop()
            if source is entry or not self._bits[source] & bit:
                outside.add(source)
            elif source in found:
                continue
            elif self._tree.number(source) not in inside:
                self._left[add] = source
                return None
            elif (inner := self._inner.get(source)) and self._bits[inner.entry] & bit:
                found |= inner.nodes
                todo += inner.outside
            else:
                found.add(source)
                todo += self._flow.inputs[source]
        read = tuple(s for s in outside if self._bits[s])
        self._inner[branch] = _Inner(entry, frozenset(found), read)
        return self._inner[branch].nodes

    def _holds_parameters(self, nodes: frozenset[fx.Node], entry: fx.Node) -> bool:
        read = (s for n in nodes for s in self._flow.inputs[n])
        return any(s in self._flow.trained and s not in nodes and s is not entry for s in read)

    def _reads_whole(self, entry: fx.Node, nodes: frozenset[fx.Node]) -> bool:
        """Returns whether the branch reads more than parts of the entry, as a shortcut may."""
        readers = [r for r in self._flow.readers[entry] if r in nodes]
        return any(operator(r) not in ("slice", "narrow") for r in readers)

    def _priced(self, block: Block) -> Block:
        return replace(
            block,
            parameters=self._cost.parameters(block.branch),
            size=self._cost.size(block.branch),
            macs=self._cost.macs(block.branch),
        )

    def _nested(self, blocks: list[Block]) -> list[Block]:
        """Returns the blocks with their parents; blocks come after those that may contain them."""
        done: dict[int, Block] = {}
        by_number = {self._tree.number(b.branch): b for b in blocks}
        open_: list[int] = []
        for number in sorted(by_number):
            block = by_number[number]
            while open_ and number not in self._tree.run(done[open_[-1]].branch):
                open_.pop()
            around = (done[i] for i in reversed(open_))
            parent = next((b for b in around if block.nodes <= b.nodes), None)
            done[number] = replace(block, parent=parent)
            open_.append(number)
        return [done[self._tree.number(b.branch)] for b in blocks]


def _extended(seen: Iterable[View], closed: Mapping[fx.Node, Block]) -> Iterator[View]:
    """Yields the views of an operand, and those through additions that are known to close a block."""
    for view in seen:
        yield view
        while (block := closed.get(view.value)) is not None:
            path = (*block.projection, block.add, *view.path)
            view = replace(view, value=block.entry, path=path)
            yield view


def _sums(flow: Flow) -> Iterator[fx.Node]:
    """Yields the live additions of two tensors of equal shape."""
    sizes = Sizes.of_graph(flow.order[0].graph) if flow.order else Sizes.of_primes()
    for node in flow.order:
        if operator(node) == "add" and len(node.args) == 2 and node not in flow.written:
            a, b = (x.meta.get("val") if isinstance(x, fx.Node) else None for x in node.args)
            both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
            if both and node.args[0] is not node.args[1] and sizes.shape(a) == sizes.shape(b):
                yield node


def _operands(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yields which operand could be the shortcut and which the branch; only a branch may be scaled by `alpha`."""
    a, b = node.args
    assert isinstance(a, fx.Node)
    assert isinstance(b, fx.Node)
    if get_argument(node, "alpha") == 1:
        yield b, a
    yield a, b


class _Cost:
    """The cost that is removed with a node: parameters and multiply-accumulates that serve only that node."""

    def __init__(self, program: Program, flow: Flow, tree: PostDominators) -> None:
        self._tree = tree
        self._macs = node_macs(program)
        per_number = [0] * (len(flow.order) + 1)
        for node in flow.order:
            per_number[tree.number(node)] = self._macs.get(node, 0)
        self._sum = [0, *accumulate(per_number)]
        self._sizes = {name: p.numel() for name, p in program.module.named_parameters()}
        self._spans = sorted(_spans(program, flow, tree))
        self._total = sum(self._macs.values())

    def macs(self, branch: fx.Node) -> int:
        """Returns the multiply-accumulates that become dead with a node."""
        run = self._tree.run(branch)
        return self._sum[run.stop] - self._sum[run.start]

    def parameters(self, branch: fx.Node) -> tuple[str, ...]:
        """Returns the names of the parameters that become dead with a node."""
        run = self._tree.run(branch)
        a, b = (bisect_left(self._spans, (n, -1, "")) for n in (run.start, run.stop))
        return tuple(sorted(name for _, last, name in self._spans[a:b] if last in run))

    def size(self, branch: fx.Node) -> int:
        """Returns the number of elements of the parameters that become dead with a node."""
        return sum(self._sizes[name] for name in self.parameters(branch))

    def totals(self, name: str, blocks: list[Block]) -> Blocks:
        """Returns the blocks with sums that count nothing twice."""
        gone = {p for b in blocks for p in b.parameters}
        runs = sorted((self._tree.run(b.branch) for b in blocks), key=lambda r: (r.start, -r.stop))
        macs = end = 0
        for run in runs:
            if run.start >= end:
                macs += self._sum[run.stop] - self._sum[run.start]
                end = run.stop
        inside = sum(self._sizes[p] for p in gone)
        size = sum(self._sizes.values())
        return Blocks(name, tuple(blocks), size, self._total, inside, macs)


def _spans(program: Program, flow: Flow, tree: PostDominators) -> Iterator[tuple[int, int, str]]:
    """Yields the first and last number of the nodes that read each parameter, with its first name."""
    names: Mapping[int, str] = {id(p): name for name, p in program.module.named_parameters()}
    numbers: dict[str, list[int]] = {}
    for node, parameter in flow.parameters.items():
        numbers.setdefault(names[id(parameter)], []).append(tree.number(node))
    for name, places in numbers.items():
        yield min(places), max(places), name
