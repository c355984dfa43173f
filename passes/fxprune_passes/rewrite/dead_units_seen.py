"""Removes units that observers have never seen active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune_passes.rewrite.constants.activations_seen import activations_seen
from fxprune_passes.rewrite.constants.constant_units import constant_units
from fxprune_passes.rewrite.constants.dead import find_dead
from fxprune_passes.rewrite.constants.removal import remove_dead


@dataclass(frozen=True)
class DeadUnitsSeen(Rewrite):
    """Removes units that were never active on the observed data, where the activation function makes them 0.

    Exact on the observed data. On other data the result is the network with these units silenced, which is
    the reference it is verified against.
    """

    name: ClassVar[str] = "dead-units-seen"
    keeps: ClassVar[Keeps] = "silenced"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        seeds = {
            s.activation.node: s.constant()
            for s in activations_seen(program, ctx)
            if s.activation.zero_below
        }
        if not seeds:
            return program
        known = constant_units(program, seeds)
        return remove_dead(program, ctx, known, find_dead(program, ctx, known, carry=False))
