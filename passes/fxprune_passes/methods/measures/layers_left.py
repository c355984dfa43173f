"""Counts the layers that are left in the network for inference."""

from __future__ import annotations

import copy

from fxprune.graph.program import Program
from fxprune_passes.insert.places.weighted import weight_of
from fxprune_passes.methods.method import When, for_use


def layers_left(program: Program, when: When) -> int:
    """The number of convolutions and linear layers that `for_use` leaves of a program; not verified."""
    small = for_use(copy.deepcopy(program), when=when, verify=False)
    return sum(bool(weight_of(node)) for node in small.nodes)
