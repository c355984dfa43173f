"""Keeps the last program before the accuracy fell."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fxprune.graph.program import Program
from fxprune.training import Shrinker
from fxprune_passes.methods.measures.measure import Measure, in_eval_mode
from fxprune_passes.methods.measures.packed_program import pack_program, unpack_program


class LastGood:
    """Detects when the accuracy of a network has fallen, and keeps the last program before that.

    Args:
        evaluate: returns the accuracy of a module in eval mode; None: the accuracy counts as constant.
        delta: by how much it may fall below the best accuracy so far.

    Attributes:
        program: a copy of the last program whose accuracy had not fallen; None before the first evaluation.
    """

    def __init__(self, evaluate: Measure | None, delta: float) -> None:
        self._evaluate, self._delta = evaluate and in_eval_mode(evaluate), delta
        self.program: Program | None = None
        self._best: float | None = None

    def has_fallen(self, shrinker: Shrinker) -> bool:
        """Whether the accuracy has fallen too far; if not, the program is kept as the last good one."""
        if self._evaluate is None:
            return False
        accuracy = self._evaluate(shrinker.module)
        best = accuracy if self._best is None else self._best
        if not accuracy >= best - self._delta:
            return True
        self._best = max(best, accuracy)
        self.program = copy.deepcopy(shrinker.program)
        return False

    def state_dict(self) -> dict[str, Any]:
        """The best accuracy and the packed program."""
        packed = {} if self.program is None else pack_program(self.program)
        return {"best": self._best, "program": packed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state from `state_dict`."""
        self._best = state["best"]
        self.program = unpack_program(state["program"]) if state["program"] else None
