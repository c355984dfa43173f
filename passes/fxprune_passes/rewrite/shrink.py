"""Removes the units and branches that preceding decision passes selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.pipeline import Branch, Context, Keeps, Rewrite
from fxprune_passes.rewrite.branches.removal import remove_branches


@dataclass(frozen=True)
class Shrink(Rewrite):
    """Removes the units and branches that the decision passes before it selected."""

    name: ClassVar[str] = "shrink"
    keeps: ClassVar[Keeps] = "silenced"
    shrinks: ClassVar[bool] = True

    def rewrite(self, program: Program, ctx: Context) -> Program:
        pending, ctx.pending = ctx.pending, set()
        branches = [p.gate for p in pending if isinstance(p, Branch)]
        units = [p for p in pending if not isinstance(p, Branch)]
        if units and ctx.allow(program.name, f"removed {len(units)} units", code="units"):
            program = ctx.remove(program, units)
        return remove_branches(program, sorted(branches), ctx)
