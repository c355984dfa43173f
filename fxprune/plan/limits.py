"""What a choice of units is limited to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Groups that stay whole, groups that keep equal shares of their units, and groups that keep multiples.

    Attributes:
        whole: name of a group that loses no unit -> why.
        ties: names of groups that lose equal shares of their units, in as many steps as the numbers of these have as
            common divisor; a group is in one tie at most.
        steps: name of a group -> it keeps a multiple of this number of units, or of what a tie removes at a time.
    """

    whole: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    steps: Mapping[str, int] = field(default_factory=dict)
