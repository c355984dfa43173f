"""Selects the units and branches whose gates are at 0 for removal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fxprune.graph.gate import gate_nodes
from fxprune.graph.program import Program
from fxprune.pipeline import Branch, Context, Decision, Unit
from fxprune_passes.rewrite.constants.dead import Candidates
from fxprune_passes.rewrite.gated.closed_gates import find_closed
from fxprune_passes.rewrite.gated.exact_removal import gated_constants, without_empty_axes


@dataclass(frozen=True)
class DecideGated(Decision):
    """Selects the units and branches whose gates are at 0; where all unit gates are at 0, the branch they are on.

    `shrink` then keeps the network with the selected units silenced. Where a norm or a recurrence makes that
    differ from the network with the gates at 0, a remark says so.
    """

    name: ClassVar[str] = "decide-gated"

    def decide(self, program: Program, ctx: Context) -> Iterable[Unit | Branch]:
        places = gate_nodes(program)
        closed = find_closed(program, ctx)
        units = {u for found in closed.values() if isinstance(found, list) for u in found}
        kept = set(without_empty_axes(ctx.axes(program), sorted(units)))
        if kept:
            _, exact = gated_constants(program, ctx, rewrite=False)
        for path, found in closed.items():
            if isinstance(found, Branch):
                what = f"selected the branch of {path}, which is at 0"
                if ctx.allow(places[path][0], what, code="decided"):
                    yield found
                continue
            goes = [u for u in found if u in kept]
            if len(goes) < len(found):
                why = "an axis would be left without a position"
                what = f"{len(found) - len(goes)} units gated by {path} stay"
                ctx.missed(places[path][0], what, why, code="units-stay")
            what = f"selected {len(goes)} units whose gates in {path} are at 0"
            if goes and ctx.allow(places[path][0], what, code="decided"):
                _remark_change(ctx, places[path][0], goes, exact)
                yield from goes


def _remark_change(ctx: Context, place: fx.Node, units: list[Unit], exact: Candidates) -> None:
    """Reports units that the gated network would miss."""
    missed = [u for u in units if u not in exact.units]
    if missed:
        ctx.remark(
            "analysis",
            "differs",
            place,
            f"without {len(missed)} of them the network differs from the gated one",
            exact.why(missed),
            "shrink keeps the network with removed units silenced; delete-gated keeps the gated one",
        )
