"""Deletes the branches and units that gates at 0 switch off, and the gates that are at 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.gate import gate_nodes, gates
from fxprune.graph.program import Program
from fxprune.pipeline import Branch, Context, Keeps, Rewrite, Unit
from fxprune.structure.paths import operator
from fxprune_passes.decide.gates.closed_gates import ALL, closed_units, find_closed, gates_under
from fxprune_passes.rewrite.branches.removal import remove_branches
from fxprune_passes.rewrite.branches.zero import StuckError, follow_zero
from fxprune_passes.rewrite.moves.rejoined_split import split_value


@dataclass(frozen=True)
class DeleteGated(Rewrite):
    """Deletes branches and units whose gates are at 0, and gates that are at 1.

    A branch is deleted with everything in it and everything that only it feeds; a projection on its shortcut
    stays. Gates at other values stay: `absorb-gates` moves them into weights.

    Args:
        where: globs of the paths of the gates to consider; other gates stay, whatever their values.
    """

    name: ClassVar[str] = "delete-gated"
    keeps: ClassVar[Keeps] = "silenced"
    where: tuple[str, ...] = ALL

    def rewrite(self, program: Program, ctx: Context) -> Program:
        places = gate_nodes(program)
        units: list[int] = []
        branches: list[str] = []
        for path, found in find_closed(program, ctx, self.where).items():
            if isinstance(found, Branch):
                found = _all_but_one(program, ctx, path)
            if not found:
                branches.append(path)
            elif ctx.allow(
                places[path][0], f"removed {len(found)} units gated by {path}", code="units"
            ):
                units += found
        if units:
            program = ctx.remove(program, units)
        program = remove_branches(program, branches, ctx)
        return remove_open_gates(program, ctx, self.where)


def _all_but_one(program: Program, ctx: Context, path: str) -> list[Unit]:
    """All gated units but one, where unit gates that are all at 0 do not form a branch; else no units.

    Their 0 cannot be followed where the axis has other units too, and no axis may become empty.
    """
    gate, editor = gates(program)[path], ctx.edit(program)
    places = gate_nodes(program)[path]
    try:
        for place in places:
            follow_zero(editor, editor.node(place))
    except StuckError as error:
        if gate.theta.numel() < 2:
            return []
        ctx.missed(places[0], f"one unit gated by {path} stays", str(error), code="last")
        zeros = torch.arange(gate.theta.numel()) > 0
        return closed_units(ctx.axes(program), path, zeros)[0]
    return []


def remove_open_gates(program: Program, ctx: Context, where: tuple[str, ...] = ALL) -> Program:
    """Removes the gates that multiply by 1, among those whose paths match the globs."""
    editor = ctx.edit(program)
    places = gate_nodes(program)
    for path, gate in gates_under(program, where).items():
        settled = gate.settled()
        if bool(((settled != 0) & (settled != 1)).any()):
            ctx.missed(
                places[path][0],
                f"gate {path} stays",
                "its value is neither 0 nor 1",
                code="between",
                do="run absorb-gates, which moves it into weights",
            )
        elif bool((settled == 1).all()) and ctx.allow(
            places[path][0], f"removed gate {path}, which is at 1", code="opened"
        ):
            for place in places[path]:
                _open(editor, editor.node(place))
    return editor.finish()


def _open(editor: Editor, gate: fx.Node) -> None:
    """Removes a gate, and the split and concatenation around it once no part of the value is gated."""
    readers = list(gate.users)
    editor.replace(gate, gate.all_input_nodes[0])
    for reader in readers:
        if operator(reader) == "cat" and (whole := split_value(reader)) is not None:
            editor.replace(reader, whole)
