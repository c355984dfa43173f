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
from fxprune.verify.equivalence import compare_functions
from fxprune_passes.rewrite.branches.removal import remove_branches
from fxprune_passes.rewrite.branches.zero import StuckError, follow_zero
from fxprune_passes.rewrite.constants.dead import Candidates
from fxprune_passes.rewrite.constants.removal import remove_constant
from fxprune_passes.rewrite.gated.closed_gates import ALL, closed_units, find_closed, gates_under
from fxprune_passes.rewrite.gated.exact_removal import gated_constants, without_empty_axes
from fxprune_passes.rewrite.moves.rejoined_split import split_value


@dataclass(frozen=True)
class DeleteGated(Rewrite):
    """Deletes branches and units whose gates are at 0, and gates that are at 1.

    A branch is deleted with everything in it and everything that only it feeds; a projection on its shortcut
    stays. Gates at other values stay: `absorb-gates` moves them into weights. A unit goes where the gated
    program does not miss it; where a norm or a recurrence does, it stays, with a remark.

    Args:
        where: globs of the paths of the gates to consider; other gates stay, whatever their values.
        exact: whether units stay that the gated program would miss. Else the result is the program with the
            removed units silenced, and a remark says how far that is from the gated program.
    """

    name: ClassVar[str] = "delete-gated"
    keeps: ClassVar[Keeps] = "function"
    where: tuple[str, ...] = ALL
    exact: bool = True

    def __post_init__(self) -> None:
        if not self.exact:
            object.__setattr__(self, "keeps", "silenced")

    def rewrite(self, program: Program, ctx: Context) -> Program:
        units: dict[str, list[Unit]] = {}
        branches: list[str] = []
        for path, found in find_closed(program, ctx, self.where).items():
            if isinstance(found, Branch):
                found = _all_but_one(program, ctx, path)
            if found:
                units[path] = found
            else:
                branches.append(path)
        small = self._remove(program, ctx, units) if units else program
        small = remove_branches(small, branches, ctx)
        return remove_open_gates(small, ctx, self.where)

    def _remove(self, program: Program, ctx: Context, units: dict[str, list[Unit]]) -> Program:
        if self.exact:
            known, found = gated_constants(program, ctx)
            units = {p: _exact_units(program, ctx, p, u, found) for p, u in units.items()}
            return remove_constant(program, ctx, known, _allowed(program, ctx, units))
        chosen = _allowed(program, ctx, units)
        if not chosen:
            return program
        small = ctx.remove(program, chosen)
        if not any(t.is_meta for t in program.tensors().values()):
            error = compare_functions(program, small, seed=ctx.seed).max_relative_error
            what = f"the outputs change by at most {error:.1e}, relative to the largest output"
            ctx.remark("analysis", "change", program.name, what, "exact=false is set")
        return small


def _exact_units(
    program: Program, ctx: Context, path: str, units: list[Unit], found: Candidates
) -> list[Unit]:
    """The units that the gated program does not miss; a remark on the others."""
    stay = [u for u in units if u not in found.units]
    if stay:
        ctx.missed(
            gate_nodes(program)[path][0],
            f"{len(stay)} units gated by {path} stay",
            f"the program without them would differ: {found.why(stay)}",
            code="inexact",
            do="exact=false removes them and measures the change",
        )
    return [u for u in units if u in found.units]


def _allowed(program: Program, ctx: Context, units: dict[str, list[Unit]]) -> list[Unit]:
    """The units that may go, without those that would leave an axis empty; gate by gate."""
    places = gate_nodes(program)
    wanted = {u for found in units.values() for u in found}
    kept = set(without_empty_axes(ctx.axes(program), sorted(wanted)))
    chosen: set[Unit] = set()
    for path, found in units.items():
        spared = [u for u in found if u not in kept]
        if spared:
            why = "an axis would be left without a position"
            ctx.missed(
                places[path][0], f"{len(spared)} units gated by {path} stay", why, code="last"
            )
        new = set(found) & kept - chosen
        what = f"removed {len(new)} units gated by {path}"
        if new and ctx.allow(places[path][0], what, code="units"):
            chosen |= new
    return sorted(chosen)


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
