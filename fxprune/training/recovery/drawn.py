"""What the course of a recovery looks like: as a picture, and as curves of a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fxprune.report import Curves
from fxprune.report.figure import new_figure
from fxprune.training.recovery.loop import Point

_SERIES = {"loss": "loss of the steps", "held": "held-out distance"}


def curves_of(points: Sequence[Point]) -> tuple[Curves, ...]:
    """Loss and held-out distance over the steps; nothing where there are no points."""
    series = {label: found for label, found in _known(points).items() if found}
    note = "How far the outputs are from those of the original, while the smaller network learns from it."
    return (Curves("Recovery", "steps", "distance", series, note),) if series else ()


def plot_points(points: Sequence[Point], path: str | os.PathLike[str]) -> None:
    """Plots loss and held-out distance over the steps, on a logarithmic axis; PNG by default.

    Raises:
        OptionError: matplotlib is not installed.
    """
    figure = new_figure("Recovered.plot", 7, 4)
    axes = figure.subplots()
    for label, found in _known(points).items():
        if found:
            axes.plot(*zip(*found, strict=True), marker="o", label=label)
    axes.set_xlabel("steps")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(Path(path))


def _known(points: Sequence[Point]) -> dict[str, list[tuple[float, float]]]:
    return {
        label: [(p.step, getattr(p, name)) for p in points if getattr(p, name) is not None]
        for name, label in _SERIES.items()
    }
