"""Removes whole branches whose gates are at 0."""

from __future__ import annotations

from torch import fx

from fxprune.graph.gate import Gate, gate_nodes
from fxprune.graph.leaf import leaf_of
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
                ctx.zeros.append(_value(program, place).name)
    return editor.finish()


def _value(program: Program, node: fx.Node) -> fx.Node:
    """What a gate weighs, behind other gates."""
    while isinstance(leaf_of(program.module, node), Gate):
        node = node.all_input_nodes[0]
    return node
