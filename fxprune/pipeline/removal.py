"""What decisions want gone: units and branches."""

from __future__ import annotations

from dataclasses import dataclass

Unit = int


@dataclass(frozen=True)
class Branch:
    """A branch that is to go: what a scalar gate weighs, by the gate's path."""

    gate: str
