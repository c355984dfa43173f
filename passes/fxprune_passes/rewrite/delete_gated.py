"""Deletes what gates have switched off, and gates that are on for good."""

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
from fxprune_passes.decide.decide_gated import ALL, closed, closed_units, gates_under
from fxprune_passes.rewrite.branch import StuckError, follow_zero
from fxprune_passes.rewrite.drop_identity import split_value
from fxprune_passes.rewrite.shrink import remove_branches


@dataclass(frozen=True)
class DeleteGated(Rewrite):
    """Deletes branches and units whose gates are at 0, and gates that are at 1.

    A branch goes with whatever is in it and what only it fed; a projection on its shortcut stays. Gates
    at other values stay: `absorb-gates` moves them into weights.

    Args:
        where: globs of the paths of the gates to look at; others stay, whatever they are at.
    """

    name: ClassVar[str] = "delete-gated"
    keeps: ClassVar[Keeps] = "silenced"
    where: tuple[str, ...] = ALL

    def rewrite(self, program: Program, ctx: Context) -> Program:
        places = gate_nodes(program)
        units: list[int] = []
        branches: list[str] = []
        for path, found in closed(program, ctx, self.where).items():
            if isinstance(found, Branch):
                found = _all_but_one(program, ctx, path)
            if not found:
                branches.append(path)
            elif ctx.allow(places[path][0], f"{len(found)} units of {path}", code="units"):
                units += found
        if units:
            program = ctx.remove(program, units)
        program = remove_branches(program, branches, ctx)
        return remove_open_gates(program, ctx, self.where)


def _all_but_one(program: Program, ctx: Context, path: str) -> list[Unit]:
    """All units but one of unit gates that are all at 0, where they are no branch; none where they are.

    Beside other units of an axis their 0 cannot be followed, and no axis may become empty.
    """
    gate, editor = gates(program)[path], ctx.edit(program)
    places = gate_nodes(program)[path]
    try:
        for place in places:
            follow_zero(editor, editor.node(place))
    except StuckError as error:
        if gate.theta.numel() < 2:
            return []
        ctx.missed(places[0], f"a unit of {path} stays", str(error), code="last")
        zeros = torch.arange(gate.theta.numel()) > 0
        return closed_units(ctx.axes(program), path, zeros)[0]
    return []


def remove_open_gates(program: Program, ctx: Context, where: tuple[str, ...] = ALL) -> Program:
    """The program without the gates that multiply by 1, of those under globs of paths."""
    editor = ctx.edit(program)
    places = gate_nodes(program)
    for path, gate in gates_under(program, where).items():
        settled = gate.settled()
        if bool(((settled != 0) & (settled != 1)).any()):
            ctx.missed(
                places[path][0],
                f"{path} stays",
                "it multiplies by something else than 0 or 1",
                code="between",
                do="absorb-gates moves it into weights",
            )
        elif bool((settled == 1).all()) and ctx.allow(
            places[path][0], f"{path} is at 1", code="opened"
        ):
            for place in places[path]:
                _open(editor, editor.node(place))
    return editor.finish()


def _open(editor: Editor, gate: fx.Node) -> None:
    """Takes a gate out, and the split and join around it once no part of it is gated."""
    readers = list(gate.users)
    editor.replace(gate, gate.all_input_nodes[0])
    for reader in readers:
        if operator(reader) == "cat" and (whole := split_value(reader)) is not None:
            editor.replace(reader, whole)
