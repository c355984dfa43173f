"""Counts what a network has lost since the start: activations, layers, weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from fxprune.graph.program import Program
from fxprune_passes.insert.places.weighted import weight_of
from fxprune_passes.methods.activations.entropy_layers import EntropyLayer
from fxprune_passes.methods.activations.entropy_pruning import count_left
from fxprune_passes.methods.method import When, for_use


class Removed:
    """How much of a network is gone.

    Args:
        program: the network at the start, with observers.
        layers: its activations.
        when: how `for_use` fuses.

    Attributes:
        layers_gone: how many convolutions and linear layers fewer `for_use` leaves of the network than of that
            at the start, at the last `count`.
        names: the names of the weights before the activations.
    """

    def __init__(self, program: Program, layers: Sequence[EntropyLayer], when: When) -> None:
        self._when = when
        self._activations = len(layers)
        self.names = [name for layer in layers for name in layer.weights]
        self._weights = count_left(program, self.names)
        self._depth = _layers_left(program, when)
        self.layers_gone = 0

    def count(self, program: Program) -> None:
        """Counts the layers gone: makes the network for inference, unverified, and looks what is in it."""
        self.layers_gone = self._depth - _layers_left(program, self._when)

    def layers_linear(self, layers: Sequence[EntropyLayer]) -> int:
        """The number of activations that are gone, given those that are left."""
        return self._activations - len(layers)

    def weights_left(self, program: Program) -> float:
        """The share of the weights that are still there and not 0."""
        return count_left(program, self.names) / max(1, self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What there was at the start, and the layers gone."""
        return {
            "activations": self._activations,
            "names": list(self.names),
            "weights": self._weights,
            "depth": self._depth,
            "layers_gone": self.layers_gone,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state from `state_dict`."""
        self._activations, self.names = state["activations"], list(state["names"])
        self._weights, self._depth = state["weights"], state["depth"]
        self.layers_gone = state["layers_gone"]


def _layers_left(program: Program, when: When) -> int:
    small = for_use(copy.deepcopy(program), when=when, verify=False)
    return sum(bool(weight_of(node)) for node in small.nodes)
