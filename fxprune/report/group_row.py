"""The groups of a report."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.analysis.group import Groups
from fxprune.plan import Plan


@dataclass(frozen=True)
class GroupRow:
    """A group in a report.

    Attributes:
        name: the name of the group.
        units: the number of units before pruning.
        kept: the number of units that are kept.
        exact: whether the removal leaves the statistics of every norm unchanged.
    """

    name: str
    units: int
    kept: int
    exact: bool


def group_rows(groups: Groups, plan: Plan) -> tuple[GroupRow, ...]:
    """A row for each group, in order."""
    gone = set(plan.removed.tolist())
    return tuple(
        GroupRow(g.name, len(g), len(g) - len(gone.intersection(g.units.tolist())), g.exact)
        for g in groups
    )
