"""Measures the accuracy between rounds, and keeps the last network before it fell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune.training import Point, Shrinker
from fxprune_passes.methods.measures.measure import Measure, in_eval_mode
from fxprune_passes.methods.measures.packed_program import pack_program, unpack_program


class LastGood:
    """Detects when the accuracy of a network has fallen, and keeps the last network before that.

    Args:
        evaluate: returns the accuracy of a module in eval mode; None: nothing is measured.
        delta: by how much it may fall below the best accuracy so far; None: by any amount, and nothing is kept.

    Attributes:
        point: the last network whose accuracy had not fallen; None before there is one.
    """

    def __init__(self, evaluate: Measure | None, delta: float | None) -> None:
        self._evaluate, self._delta = evaluate and in_eval_mode(evaluate), delta
        self.point: Point | None = None
        self._best: float | None = None

    def measure(self, shrinker: Shrinker) -> float | None:
        """The accuracy of the network in training; None without `evaluate`."""
        return None if self._evaluate is None else self._evaluate(shrinker.module)

    def has_fallen(self, shrinker: Shrinker, accuracy: float | None) -> bool:
        """Whether an accuracy has fallen too far; if not, the network is kept as the last good one."""
        if accuracy is None or self._delta is None:
            return False
        best = accuracy if self._best is None else self._best
        if not accuracy >= best - self._delta:
            return True
        self._best = max(best, accuracy)
        self.point = shrinker.point()
        return False

    def take(self) -> Point | None:
        """Hands over the last good network, and keeps it no longer."""
        point, self.point = self.point, None
        return point

    def state_dict(self) -> dict[str, Any]:
        """The best accuracy, the packed program, and the groups of its parameters in the optimizer."""
        if self.point is None:
            return {"best": self._best, "program": {}, "groups": []}
        groups = [list(names) for names in self.point.groups]
        return {"best": self._best, "program": pack_program(self.point.program), "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state from `state_dict`."""
        self._best, self.point = state["best"], None
        if state["program"]:
            groups = tuple(map(tuple, state["groups"]))
            self.point = Point(unpack_program(state["program"]), groups)
