"""What a choice of units is limited to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Groups that stay whole, and groups that keep equal numbers of units.

    Attributes:
        whole: name of a group that loses no unit -> why.
        ties: names of groups of equal length that lose equal numbers of units; a group is in one tie at most.
    """

    whole: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
