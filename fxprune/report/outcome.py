"""What a pruning gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fxprune.graph.program import Program
from fxprune.markup import Html, join, tag
from fxprune.plan import Plan
from fxprune.remark import Remark
from fxprune.report.report import Report


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `prune` returns.

    Attributes:
        program: the smaller program; `program.module` is an ordinary GraphModule.
        plan: what was decided.
        report: sizes before and after, groups, checks, remarks and seconds; prints as tables.
        original: the program that was pruned; where `to=` has taken layers out, without these.
        model: of a partial capture, the smaller model: the pruned parts back in their places.
        written: with `fits=` or `to=`, the smaller model of the user's own class.
    """

    program: Program
    plan: Plan
    report: Report
    original: Program = field(repr=False)
    model: torch.nn.Module | None = field(default=None, repr=False)
    written: torch.nn.Module | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        """The smaller program and the report, in short, for notebooks."""
        return join([tag("p", repr(self.program)), Html(self.report._repr_html_())])

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was done, what was left, and why."""
        return tuple(self.report.remarks)
