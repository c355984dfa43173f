"""The report of a pruning run: text for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from typing import Any

from tabulate import tabulate

import fxprune.report.html as sections
from fxprune.analysis.cache import solved
from fxprune.analysis.explain import explain_groups
from fxprune.errors import LoadError
from fxprune.files.document import Document, Entry
from fxprune.graph.program import Program
from fxprune.markup import join, table, tag
from fxprune.plan import Plan
from fxprune.plan.reasons import frozen_reasons
from fxprune.process.state import plain_modes
from fxprune.remark import Remark, read_remark
from fxprune.report.curves import Curves, Measured, read_curves
from fxprune.report.group_row import GroupRow
from fxprune.report.html import Ties, write_page
from fxprune.report.html.numbers import share
from fxprune.report.latency import Latency, read_latency
from fxprune.report.summary import Comparison, Summary, fold, plain, read_summary
from fxprune.verify import Check


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
        latency: of both networks, where somebody has measured it.
        curves: further measurements, such as the loss against the share that is kept.
        plan: what is removed. A report that is kept keeps it, and with it the original network; it is no part of the
            data of `to_json`.
    """

    before: Summary
    after: Summary
    groups: Sequence[GroupRow] = ()
    checks: Sequence[Check] = ()
    remarks: Sequence[Remark] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    latency: Latency | None = None
    curves: Sequence[Curves] = ()
    plan: Plan | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """The totals and the verification, for notebooks; `to_html` has everything."""
        a, b = self.before.total, self.after.total
        rows = [
            (name, old, new, share(new, old))
            for name, old, new in (
                ("parameters", a.parameters, b.parameters),
                ("MACs", a.macs, b.macs),
                ("bytes", a.bytes, b.bytes),
            )
        ]
        cut = sum(g.kept < g.units for g in self.groups)
        lines = [f"{cut} of {len(self.groups)} groups lose units"] if self.groups else []
        lines += [str(c) for c in self.checks] or ["not verified"]
        lines += [str(self.latency)] if self.latency else []
        lines += [f"remarks: {len(self.remarks):,}"] if self.remarks else []
        numbers = table(("", "before", "after", "left"), rows, self.before.title)
        return join([numbers, *(tag("p", line) for line in lines)])

    @property
    def comparison(self) -> Comparison:
        """The costs of both networks side by side."""
        return Comparison(self.before, self.after)

    def with_curves(self, *measured: Curves | Measured) -> Report:
        """Returns the report with further curves: those of `fp.sensitivity`, of a recovery, or your own."""
        found = [[m] if isinstance(m, Curves) else m.curves() for m in measured]
        return replace(self, curves=(*self.curves, *chain.from_iterable(found)))

    def text(self, depth: int | None = 2) -> str:
        """Returns the report as text, with modules summed up at a depth; None shows every module."""
        folded = Comparison(fold(self.before, depth), fold(self.after, depth))
        parts = [str(folded), _groups_text(self.groups)]
        parts += ["\n".join(f"check    {c}" for c in self.checks)]
        parts += [str(self.latency or "")]
        parts += ["\n".join(map(str, self.remarks))]
        parts += [", ".join(f"{name} {s:.2f} s" for name, s in self.seconds.items() if s >= 0.005)]
        return "\n\n".join(p for p in parts if p)

    def to_html(self, program: Program | None = None) -> str:
        """Returns the report as one HTML page, which loads nothing from elsewhere.

        Args:
            program: a network in whose graph one sees what is tied to what: by default the one that was pruned, where
                the plan knows it.
        """
        source = program or (self.plan and self.plan.program)
        ties, frozen = _ties(source) if source else (None, [])
        title = f"{self.before.name}, pruned"
        return write_page(
            title,
            self.before.title,
            [
                sections.totals(self.comparison, self.groups, self.checks),
                sections.modules(self.comparison),
                sections.groups(self.groups, ties, frozen),
                sections.plan_diff(self.plan),
                sections.remarks(self.remarks),
                sections.checks(self.checks),
                sections.latency(self.latency),
                sections.curves(self.curves),
                sections.seconds(self.seconds),
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain data, from which `from_json` restores it."""
        measured: dict[str, Any] = {}
        if self.latency is not None:
            measured["latency"] = self.latency.to_json()
        if self.curves:
            measured["curves"] = [c.to_json() for c in self.curves]
        return {
            **self.comparison.to_json(),
            "groups": [asdict(g) for g in self.groups],
            "checks": [plain(asdict(c)) for c in self.checks],
            "remarks": [r.to_json() for r in self.remarks],
            "seconds": dict(self.seconds),
            **measured,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report of `to_json()`.

        Raises:
            LoadError: the data is something else.
        """
        return read_report(Entry(data, Document("report", LoadError)))


def read_report(entry: Entry) -> Report:
    """The report of a JSON object of `Report.to_json`."""
    names = ("before", "after", "ratios", "groups", "checks", "remarks", "seconds")
    facts = entry.record(*names, optional=("latency", "curves"))
    curves = facts["curves"].items() if "curves" in facts else []
    return Report(
        read_summary(facts["before"]),
        read_summary(facts["after"]),
        tuple(map(_group, facts["groups"].items())),
        tuple(map(_check, facts["checks"].items())),
        tuple(map(read_remark, facts["remarks"].items())),
        {name: e.number() for name, e in facts["seconds"].mapping().items()},
        read_latency(facts["latency"]) if "latency" in facts else None,
        tuple(map(read_curves, curves)),
    )


@plain_modes()
def _ties(program: Program) -> tuple[Ties, list[str]]:
    """What each group of a program cuts and why, and why other axes stay."""
    axes = solved(program)
    return explain_groups(axes), frozen_reasons(axes)


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
    names = [f.name for f in fields(Check) if f.name != "regions"]
    facts = entry.record(*names, optional=("regions",))  # results of 0.1 have none
    regions = facts.get("regions")
    return Check(
        ok=facts["ok"].flag(),
        max_relative_error=_error(facts["max_relative_error"]),
        tolerance=_error(facts["tolerance"]),
        groups=tuple(e.text() for e in facts["groups"].items()),
        batches=tuple(e.integer() for e in facts["batches"].items()),
        regions=None if regions is None or regions.value is None else regions.integer(0),
        change=None if facts["change"].value is None else _error(facts["change"]),
        dtype=facts["dtype"].text(),
        worst_output=facts["worst_output"].text(),
        first_bad_node=facts["first_bad_node"].text(),
        against=facts["against"].text(),
    )


def _error(entry: Entry) -> float:
    """A number, or the text that stands for one that is not finite."""
    if isinstance(entry.value, str):
        return float(entry.text(("inf", "-inf", "nan")))
    return entry.number()
