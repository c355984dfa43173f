"""Plots the course of a recovery."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fxprune.report.figure import new_figure
from fxprune.training.recovery.loop import Point


def plot_points(points: Sequence[Point], path: str | os.PathLike[str]) -> None:
    """Plots loss and held-out distance over the steps, on a logarithmic axis; PNG by default.

    Raises:
        OptionError: matplotlib is not installed.
    """
    figure = new_figure("Recovered.plot", 7, 4)
    axes = figure.subplots()
    for name, label in (("loss", "loss of the steps"), ("held", "held-out distance")):
        known = [(p.step, getattr(p, name)) for p in points if getattr(p, name) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", label=label)
    axes.set_xlabel("steps")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(Path(path))
