"""Removes units that are constant by their weights; their contribution moves into the following biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune_passes.rewrite.constants.constant_units import constant_units
from fxprune_passes.rewrite.constants.dead import find_dead
from fxprune_passes.rewrite.constants.removal import remove_dead


@dataclass(frozen=True)
class DeadUnits(Rewrite):
    """Removes units that are constant for every input of the network, as their weights show. Exact.

    A unit is constant where the weights of its layer are all 0, where the factor of its batch norm is 0, and
    where everything that it is computed from is constant. Its contribution to a following layer is added to
    the bias of that layer. A unit with a nonzero constant in front of a padded convolution stays, since the
    padding does not contain the constant.

    Attributes:
        border: whether such units are removed as well: their contribution to each position is stored as a map
            and added after the convolution. The network then accepts images of this size only.
    """

    name: ClassVar[str] = "dead-units"
    border: bool = False

    def rewrite(self, program: Program, ctx: Context) -> Program:
        if program.training:
            why = "in train mode a unit that is constant now may change later"
            ctx.missed(
                program.name, "no unit was removed", why, code="train-mode", do="call eval() first"
            )
            return program
        known = constant_units(program)
        found = find_dead(program, ctx, known, carry=True, norms=True, border=self.border)
        return remove_dead(program, ctx, known, found)
