"""What running a pipeline gives: tables for people, JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tabulate import tabulate

from fxprune.graph.program import Program
from fxprune.pipeline.pipeline import Pipeline
from fxprune.pipeline.remarks import count_remarks, select
from fxprune.pipeline.removal import Branch, Unit
from fxprune.plan import Plan
from fxprune.remark import Remark
from fxprune.report import Comparison, compare
from fxprune.verify import Check


@dataclass(frozen=True)
class Step:
    """One pass as it ran.

    Attributes:
        text: the pass as pipeline text.
        seconds: wall time of the pass itself.
        changed: whether the program is another one now, or units were decided on.
        rewrites: how many single rewrites it applied.
        checks: how its result was verified; empty where it was not.
        check_seconds: wall time of the checks.
        disabled: whether it was left out on request.
    """

    text: str
    seconds: float = 0.0
    changed: bool = False
    rewrites: int = 0
    checks: tuple[Check, ...] = ()
    check_seconds: float = 0.0
    disabled: bool = False

    def row(self) -> tuple[str, str, int, str, str, str]:
        """Pass, changed, rewrites, checks, seconds and seconds of checks, as text."""
        state = "disabled" if self.disabled else "yes" if self.changed else "no"
        worst = max((c.max_relative_error for c in self.checks), default=0.0)
        checks = f"{len(self.checks)} agree ({worst:.0e})" if self.checks else "-"
        seconds = f"{self.seconds:.3f}", f"{self.check_seconds:.3f}" if self.checks else "-"
        return self.text, state, self.rewrites, checks, *seconds


@dataclass(frozen=True, eq=False)
class Result:
    """What running a pipeline gives; prints as tables.

    Attributes:
        program: the program after the last pass.
        original: the program that was given.
        pipeline: what ran.
        steps: every pass as it ran, loops unrolled.
        plans: the plan of every pass that removed units, in order.
        pending: units and branches that were decided on and that no `shrink` removed.
        remarks: what was done, what was left, and why.
        zeros: the names of the nodes that ended the branches that were deleted, in the programs that had them.
        checks: how the whole was verified in the end.
    """

    program: Program
    original: Program
    pipeline: Pipeline
    steps: tuple[Step, ...]
    plans: tuple[Plan, ...]
    pending: frozenset[Unit | Branch]
    remarks: tuple[Remark, ...]
    zeros: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the program is another one than at the start."""
        return self.program is not self.original

    @cached_property
    def comparison(self) -> Comparison:
        """Parameters, MACs and bytes before and after, module by module."""
        return compare(self.original, self.program)

    def select(self, glob: str = "*", kind: str = "*") -> list[Remark]:
        """The remarks of passes, and of a kind: `result.select("fuse-linear", "missed")`."""
        return select(self.remarks, glob, kind)

    def __str__(self) -> str:
        whole = "".join(f"\n\nthe whole {check}" for check in self.checks)
        return f"{self.table()}{whole}\n\n{self._totals()}\n\n{count_remarks(self.remarks)}"

    def table(self) -> str:
        """Every pass as it ran: changed, rewrites, checks, seconds."""
        if not self.steps:
            return "no pass ran"
        header = ["pass", "changed", "rewrites", "checks", "seconds", "of checks"]
        align = ["left", "left", "right", "left", "right", "right"]
        rows = [step.row() for step in self.steps]
        return tabulate(rows, header, tablefmt="simple", colalign=align, disable_numparse=True)

    def _totals(self) -> str:
        before, after = self.comparison.before.total, self.comparison.after.total
        rows = [
            (name, f"{getattr(before, key):,}", f"{getattr(after, key):,}", f"{left:.1%}")
            for (key, left), name in zip(
                self.comparison.ratios.items(), ("parameters", "MACs", "bytes"), strict=True
            )
        ]
        align = ["left", "right", "right", "right"]
        return tabulate(
            rows, ["", "before", "after", "left"], colalign=align, disable_numparse=True
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: pipeline text, steps, sizes before and after, units removed by each plan, remarks."""
        return {
            "pipeline": str(self.pipeline),
            "steps": [asdict(step) for step in self.steps],
            "checks": [asdict(check) for check in self.checks],
            **self.comparison.to_json(),
            "removed": [len(plan.removed) for plan in self.plans],
            "pending": len(self.pending),
            "remarks": [remark.to_json() for remark in self.remarks],
        }
