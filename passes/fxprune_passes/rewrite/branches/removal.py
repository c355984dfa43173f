"""Removes whole branches whose gates are at 0."""

from __future__ import annotations

from fxprune.graph.gate import gate_nodes
from fxprune.graph.program import Program
from fxprune.pipeline import Context
from fxprune_passes.rewrite.branches.zero import StuckError, follow_zero


def remove_branches(program: Program, gates: list[str], ctx: Context) -> Program:
    """Removes the branches that some scalar gates multiply, and the nodes that only those branches use or feed."""
    editor = ctx.edit(program)
    places = gate_nodes(program)
    for path in gates:
        for place in places[path]:
            gate = editor.node(place)
            if not gate.users:  # it was inside a branch that has been removed
                continue
            try:
                silence = follow_zero(editor, gate)
            except StuckError as error:
                ctx.missed(place, f"the branch of {path} stays", str(error), code="stuck")
                continue
            if ctx.allow(place, f"removed the branch of {path}", code="deleted"):
                silence()
    return editor.finish()
