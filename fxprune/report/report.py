"""The report of a pruning run: text for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tabulate import tabulate

from fxprune.analysis.group import Groups
from fxprune.errors import LoadError
from fxprune.files.document import Document, Entry
from fxprune.plan import Plan
from fxprune.remark import Remark, read_remark
from fxprune.report.summary import Comparison, Summary, fold, plain, read_summary
from fxprune.verify import Check


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


@dataclass(frozen=True)
class Report:
    """The result of a pruning run; prints as text.

    Attributes:
        before: the cost of every module of the original network.
        after: the cost of every module of the smaller network.
        groups: the groups, with the number of units before and after.
        checks: the verifications, in the order in which they were made.
        remarks: what was done, what was not done, and why.
        seconds: the wall time of each stage in seconds.
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
        """The costs of both networks side by side."""
        return Comparison(self.before, self.after)

    def text(self, depth: int | None = 2) -> str:
        """Returns the report as text, with modules summed up at a depth; None shows every module."""
        table = Comparison(fold(self.before, depth), fold(self.after, depth))
        parts = [str(table), _groups_text(self.groups)]
        parts += ["\n".join(f"check    {c}" for c in self.checks)]
        parts += ["\n".join(map(str, self.remarks))]
        parts += [", ".join(f"{name} {s:.2f} s" for name, s in self.seconds.items() if s >= 0.005)]
        return "\n\n".join(p for p in parts if p)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain data, from which `from_json` restores it."""
        return {
            **self.comparison.to_json(),
            "groups": [asdict(g) for g in self.groups],
            "checks": [plain(asdict(c)) for c in self.checks],
            "remarks": [r.to_json() for r in self.remarks],
            "seconds": dict(self.seconds),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report of `to_json()`.

        Raises:
            LoadError: the data is something else.
        """
        facts = Entry(data, Document("report", LoadError)).record(
            "before", "after", "ratios", "groups", "checks", "remarks", "seconds"
        )
        return cls(
            read_summary(facts["before"]),
            read_summary(facts["after"]),
            tuple(map(_group, facts["groups"].items())),
            tuple(map(_check, facts["checks"].items())),
            tuple(map(read_remark, facts["remarks"].items())),
            {name: e.number() for name, e in facts["seconds"].mapping().items()},
        )


def _groups_text(groups: Sequence[GroupRow], shown: int = 20) -> str:
    if not groups:
        return ""
    cut = [g for g in groups if g.kept < g.units]
    lines = [
        (g.name, g.units, g.kept, "exact" if g.exact else "changes norm statistics")
        for g in cut[:shown]
    ]
    title = f"{len(cut)} of {len(groups)} groups lose units"
    title += f"; the first {shown}:" if len(cut) > shown else ""
    return f"{title}\n{tabulate(lines, ['group', 'units', 'kept', 'removal'], tablefmt='simple')}"


def _group(entry: Entry) -> GroupRow:
    facts = entry.record("name", "units", "kept", "exact")
    units, kept = (facts[k].integer(0) for k in ("units", "kept"))
    return GroupRow(facts["name"].text(), units, kept, facts["exact"].flag())


def _check(entry: Entry) -> Check:
    texts = ("dtype", "worst_output", "first_bad_node", "against")
    facts = entry.record(*(f.name for f in fields(Check)))
    return Check(
        ok=facts["ok"].flag(),
        max_relative_error=_error(facts["max_relative_error"]),
        tolerance=_error(facts["tolerance"]),
        groups=tuple(e.text() for e in facts["groups"].items()),
        batches=tuple(e.integer() for e in facts["batches"].items()),
        change=None if facts["change"].value is None else _error(facts["change"]),
        **{name: facts[name].text() for name in texts},
    )


def _error(entry: Entry) -> float:
    """A number, or the text that stands for one that is not finite."""
    if isinstance(entry.value, str):
        return float(entry.text(("inf", "-inf", "nan")))
    return entry.number()
