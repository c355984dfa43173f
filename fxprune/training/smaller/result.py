"""The result of `train_smaller`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from torch import nn

from fxprune.graph.program import Program
from fxprune.remark import Remark
from fxprune.report import Comparison
from fxprune.training.history import History
from fxprune.training.shrinker import Change
from fxprune.training.smaller.method import Metric


@dataclass(frozen=True, eq=False)
class Smaller:
    """A network that was trained and made smaller; prints as text.

    Attributes:
        program: the network for use, in eval mode: without gates and observers, with folded norms. Every removal was
            verified.
        model: the same in the user's own class, in eval mode, where its forward can compute it; else None, and a
            remark says why.
        history: one row for each epoch, see `History`.
        comparison: parameters, MACs and bytes before and after, module by module.
        changes: what was removed, in order.
        remarks: what was approximated or could not be done.
        kept: the share of the cost that is left.
        asked: the share that was asked for.
        metric: the cost.
    """

    program: Program
    model: nn.Module | None
    history: History = field(repr=False)
    comparison: Comparison = field(repr=False)
    changes: tuple[Change, ...] = field(repr=False)
    remarks: tuple[Remark, ...]
    kept: float
    asked: float
    metric: Metric

    @property
    def summary(self) -> str:
        """The sizes before and after, the share that is left, and the remarks."""
        words = {"latency": "latency", "macs": "MACs", "params": "parameters"}
        reached = (
            f"{self.kept:.1%} of the {words[self.metric]} are left, asked for: {self.asked:.1%}"
        )
        reached = reached.replace("are left", "is left") if self.metric == "latency" else reached
        return "\n\n".join([str(self.comparison), reached, *map(str, self.remarks)])

    def __str__(self) -> str:
        return self.summary

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plots loss, accuracy, remaining size and time per step over the epochs, PNG by default.

        Raises:
            OptionError: matplotlib is not installed.
        """
        self.history.plot(path)
