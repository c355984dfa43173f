"""Which values of a captured network are 0 in what passes have made of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxprune.graph.program import Program
from fxprune.structure.blocks import Block, find_blocks
from fxprune.structure.paths import Flow


def gone_branches(before: Program, after: Program) -> list[str]:
    """The nodes that end residual branches of which nothing is left: no tensor, and no node that read one.

    Args:
        before: the program as it was captured.
        after: what passes have made of it.
    """
    left = Flow.of(after).order
    names = {n.name for n in left}
    tensors = {str(n.target) for n in left if n.op == "get_attr"}
    flow = Flow.of(before)

    def gone(block: Block) -> bool:
        readers = [n for n in block.nodes if any(s in flow.trained for s in flow.inputs[n])]
        return tensors.isdisjoint(block.parameters) and names.isdisjoint(r.name for r in readers)

    found: list[Block] = []
    for block in find_blocks(before, parallel=True):
        if gone(block) and not any(_inside(block, outer) for outer in found):
            found.append(block)
    return [b.branch.name for b in found]


def _inside(block: Block, outer: Block) -> bool:
    nodes: frozenset[fx.Node] = outer.nodes
    return block.nodes <= nodes


def fewer(names: list[str]) -> Iterator[list[str]]:
    """Yields the names, and then all but one of them: what another pass has fused may look deleted."""
    yield names
    yield from ([n for n in names if n != left] for left in names)
