"""Selects the units and branches whose gates are at 0 for removal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.gate import gate_nodes
from fxprune.graph.program import Program
from fxprune.pipeline import Branch, Context, Decision, Unit
from fxprune_passes.rewrite.gated.closed_gates import find_closed
from fxprune_passes.rewrite.gated.exact_removal import gated_constants


@dataclass(frozen=True)
class DecideGated(Decision):
    """Selects the units and branches whose gates are at 0; where all unit gates are at 0, the branch they are on."""

    name: ClassVar[str] = "decide-gated"

    def decide(self, program: Program, ctx: Context) -> Iterable[Unit | Branch]:
        places = gate_nodes(program)
        closed = find_closed(program, ctx)
        if any(isinstance(found, list) for found in closed.values()):
            _, exact = gated_constants(program, ctx)
        for path, found in closed.items():
            what = (
                f"selected {len(found)} units whose gates in {path} are at 0"
                if isinstance(found, list)
                else f"selected the branch of {path}, which is at 0"
            )
            if ctx.allow(places[path][0], what, code="decided"):
                yield from found if isinstance(found, list) else (found,)
            missed = [u for u in found if u not in exact.units] if isinstance(found, list) else []
            if missed:
                ctx.remark(
                    "analysis",
                    "differs",
                    places[path][0],
                    f"without {len(missed)} of them the network differs from the gated one",
                    exact.why(missed),
                    "shrink keeps the network with removed units silenced; delete-gated keeps the gated one",
                )
