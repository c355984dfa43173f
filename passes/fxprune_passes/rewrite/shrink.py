"""Removes what decisions left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.gate import gate_nodes
from fxprune.graph.program import Program
from fxprune.pipeline import Branch, Context, Keeps, Rewrite
from fxprune_passes.rewrite.branch import StuckError, follow_zero


@dataclass(frozen=True)
class Shrink(Rewrite):
    """Removes the units and branches that decisions before it took."""

    name: ClassVar[str] = "shrink"
    keeps: ClassVar[Keeps] = "silenced"
    shrinks: ClassVar[bool] = True

    def rewrite(self, program: Program, ctx: Context) -> Program:
        pending, ctx.pending = ctx.pending, set()
        branches = [p.gate for p in pending if isinstance(p, Branch)]
        units = [p for p in pending if not isinstance(p, Branch)]
        if units and ctx.allow(program.name, f"{len(units)} units", code="units"):
            program = ctx.remove(program, units)
        return remove_branches(program, sorted(branches), ctx)


def remove_branches(program: Program, gates: list[str], ctx: Context) -> Program:
    """The program without what some scalar gates weigh, and without what only those branches fed."""
    editor = ctx.edit(program)
    places = gate_nodes(program)
    for path in gates:
        for place in places[path]:
            gate = editor.node(place)
            if not gate.users:  # it lay inside another branch
                continue
            try:
                silence = follow_zero(editor, gate)
            except StuckError as error:
                ctx.missed(place, f"the branch of {path} stays", str(error), code="stuck")
                continue
            if ctx.allow(place, f"the branch of {path}", code="deleted"):
                silence()
    return editor.finish()
