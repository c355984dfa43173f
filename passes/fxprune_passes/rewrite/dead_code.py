"""Removes nodes that no other node reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fxprune.graph.editor import gathers_statistics, is_dead
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune_passes.rewrite.effects.calls import draws_now


@dataclass(frozen=True)
class DeadCode(Rewrite):
    """Removes nodes that no other node reads, and the tensors that only they read. Exact.

    Assertions and operators that write to a tensor stay. So does a random operator that is followed by other
    random operators, which would otherwise draw different numbers.
    """

    name: ClassVar[str] = "dead-code"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        found = {node for node in editor.nodes if is_dead(node)}
        drawn_later = False
        for node in reversed(list(editor.nodes)):
            if gathers_statistics(node):
                editor.keep(node)
            draws = draws_now(node)
            if is_dead(node) and draws and drawn_later:
                editor.keep(node)
                why = "the random operators that follow it would draw different numbers"
                ctx.missed(node, "it stays although no node reads it", why, code="random")
            elif is_dead(node) and (node not in found or _allowed(ctx, node)):
                editor.graph.erase_node(node)
                continue
            drawn_later = drawn_later or draws
        return editor.finish()


def _allowed(ctx: Context, node: fx.Node) -> bool:
    """Asks once for permission to remove a node and the nodes that only it reads."""
    return ctx.allow(
        node, "removed, with the nodes that only it read", code="removed", why="no node reads it"
    )
