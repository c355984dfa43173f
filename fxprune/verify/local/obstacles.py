"""Why a part of a program cannot be run by itself."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from fxprune.graph.evaluate import QUIET
from fxprune.graph.gate import Gate
from fxprune.graph.leaf import leaf_of
from fxprune.graph.memory import written_memory
from fxprune.graph.program import Program
from fxprune.structure.paths import draws
from fxprune.structure.writes import find_writes

_MODES = ("_enter_autocast", "_exit_autocast", "_set_grad_enabled")


class Obstacles:
    """What stands in the way of cutting two programs into regions."""

    def __init__(self, before: Program, after: Program) -> None:
        self._programs = before, after
        self._written = _written(before) | _written(after)

    def of_all(self) -> str:
        """Why the two cannot be cut anywhere; "" where they can."""
        for program in self._programs:
            for node in program.nodes:
                if getattr(node.target, "__name__", "") in _MODES:
                    return f"{node.name} switches a mode for the nodes behind it"
        ours, theirs = (
            [n.name for n in p.nodes if not self._written.isdisjoint((n, *n.all_input_nodes))]
            for p in self._programs
        )
        if ours != theirs:
            return "what writes in place, or reads what was written, is not the same in both"
        return ""

    def of_nodes(self, nodes: Iterable[fx.Node]) -> str:
        """Why a region with these nodes cannot be run by itself; "" where it can."""
        for node in nodes:
            if node in self._written:
                return f"{node.name} is written to in place, or may share memory with what is"
            if _is_random(node, self._programs):
                return f"{node.name} draws random numbers"
        return ""


def _written(program: Program) -> set[fx.Node]:
    """The nodes that may share memory that is written to, where an output depends on what was written."""
    read = find_writes(program.graph).before
    if not read:
        return set()
    live, todo = set[fx.Node](), [program.graph.output_node()]
    while todo:
        node = todo.pop()
        if node not in live:
            live.add(node)
            todo += (*node.all_input_nodes, *read.get(node, ()))
    return written_memory(program.graph) if any(n in live for n in read) else set()


def _is_random(node: fx.Node, programs: Iterable[Program]) -> bool:
    if node.op == "call_module":
        leaves = (leaf_of(p.module, node) for p in programs if node.graph is p.graph)
        return any(isinstance(x, Gate) and x.training and x.kind == "bernoulli" for x in leaves)
    if not draws(node):
        return False
    names = {a.name for a in node.target._schema.arguments}  # type: ignore[union-attr]
    return names.isdisjoint((*QUIET, "training"))  # what drops is switched off
