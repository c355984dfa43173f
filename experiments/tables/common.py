"""What several tables have in common."""

from __future__ import annotations

from experiments.targets import Above, AtMost, Target
from experiments.task import Arm, Kind, Measure, controls

DENSE = Arm("dense")
CLAIM = (
    "The papers claim that layers (method 1, arXiv 2406.04549), or layers and units (method 2, arXiv 2411.09127), go "
    "early in training by gates that decide for 0 or 1, at little loss of accuracy, and that training becomes cheaper."
)


def decided(arm: str) -> tuple[Target, ...]:
    """What a method with gates has to do in training, and what that may cost."""
    limits = {"undecided": 0.0, "last removal": 0.6, "seconds": 0.8}
    return tuple(AtMost(arm, column, limit) for column, limit in limits.items())


def above(arm: str, points: float, *wanted: Kind | tuple[Kind, Measure]) -> tuple[Target, ...]:
    """An arm against controls of its own; no slower than those that have its latency."""
    return tuple(
        Above(arm, control.name, points, equal_latency="latency" in kind)
        for control, kind in zip(controls(arm, *wanted), wanted, strict=True)
    )
