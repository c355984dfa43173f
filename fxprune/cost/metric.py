"""What a share can be kept of, and how much of it a removal leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fxprune.analysis.axes import Axes, BoolArray
from fxprune.cost.macs import mac_terms
from fxprune.cost.terms import Cost, param_terms
from fxprune.errors import OptionError
from fxprune.graph.program import Program

Metric = Literal["macs", "params", "units", "latency"]


def cost_of(program: Program, axes: Axes, metric: Metric) -> Callable[[BoolArray], int]:
    """The exact cost of a program after a removal, by metric; for units, its parameters.

    Raises:
        OptionError: the metric is latency, which is measured: see `fxprune.latency`.
    """
    if metric == "latency":
        raise OptionError(
            "a latency is measured, not counted", where="metric=", do="choose macs or params"
        )
    terms = mac_terms(program, axes) if metric == "macs" else param_terms(program, axes)
    return Cost(terms, axes.n_units).total
