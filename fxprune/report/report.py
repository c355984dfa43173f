"""The report of a pruning: text for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

from fxprune.analysis.group import Groups
from fxprune.plan import Plan
from fxprune.remark import Remark
from fxprune.report.summary import Comparison, Summary, fold, plain
from fxprune.verify.silenced import Check


@dataclass(frozen=True)
class GroupRow:
    """A group of a pruning: how many units it had, how many stay, whether its removal is exact."""

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


@dataclass(frozen=True)
class Report:
    """What a pruning did; prints as text.

    Attributes:
        before: the network as it was, every module.
        after: the smaller network, every module.
        groups: units and how many of them stay.
        checks: verifications, in the order they were made.
        remarks: what was done, what was left, and why.
        seconds: wall time of each stage.
    """

    before: Summary
    after: Summary
    groups: Sequence[GroupRow] = ()
    checks: Sequence[Check] = ()
    remarks: Sequence[Remark] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text()

    @property
    def comparison(self) -> Comparison:
        """Before beside after."""
        return Comparison(self.before, self.after)

    def text(self, depth: int | None = 2) -> str:
        """The report for a person, modules folded to a depth; None shows them all."""
        table = Comparison(fold(self.before, depth), fold(self.after, depth))
        parts = [str(table), _groups_text(self.groups)]
        parts += ["\n".join(f"check    {c}" for c in self.checks)]
        parts += ["\n".join(map(str, self.remarks))]
        parts += [", ".join(f"{name} {s:.2f} s" for name, s in self.seconds.items() if s >= 0.005)]
        return "\n\n".join(p for p in parts if p)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives the report back."""
        return {
            **self.comparison.to_json(),
            "groups": [asdict(g) for g in self.groups],
            "checks": [plain(asdict(c)) for c in self.checks],
            "remarks": [r.to_json() for r in self.remarks],
            "seconds": dict(self.seconds),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report of `to_json()`."""
        return cls(
            Summary.from_json(data["before"]),
            Summary.from_json(data["after"]),
            tuple(GroupRow(**g) for g in data["groups"]),
            tuple(_check(c) for c in data["checks"]),
            tuple(Remark(**r) for r in data["remarks"]),
            dict(data["seconds"]),
        )


def _groups_text(groups: Sequence[GroupRow], shown: int = 20) -> str:
    if not groups:
        return ""
    cut = [g for g in groups if g.kept < g.units]
    lines = [(g.name, g.units, g.kept, "exact" if g.exact else "renormalises") for g in cut[:shown]]
    title = f"{len(cut)} of {len(groups)} groups lose units"
    title += f"; the first {shown}:" if len(cut) > shown else ""
    return f"{title}\n{tabulate(lines, ['group', 'units', 'kept', 'removal'], tablefmt='simple')}"


def _check(data: Mapping[str, Any]) -> Check:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    values["max_relative_error"] = float(data["max_relative_error"])
    return Check(**values)
