"""Accuracy against latency, a picture for each table; and against the activations that are gone."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.columns import Cells, Rounds
from experiments.task import Task

MARKS = {"scratch": "s", "blocks": "X", "random": "v", "magnitude": "^", "magnitude after": "<"}


def plot_rounds(task: Task, rounds: dict[str, Rounds], file: Path) -> bool:
    """Draws the accuracy against the activations that are gone, beside the published one; returns whether there is one.

    Args:
        task: of the table.
        rounds: for each arm, what `Cells.rounds` says.
        file: of the picture.
    """
    if not rounds:
        return False
    figure = import_module("matplotlib.figure").Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines = {f"{arm}, held-out": {n: a for n, (_, a) in one.items()} for arm, one in rounds.items()}
    if task.published:
        lines["published, test"] = task.published
    for label, line in lines.items():
        gaps = [accuracy - line[min(line)] for accuracy in line.values()]
        axes.plot(list(line), gaps, "o-", label=label)
    axes.set_xlabel("activations that are gone")
    axes.set_ylabel("accuracy, points above the one of the first round")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    return True


def plot(task: Task, cells: Cells, file: Path) -> bool:
    """Draws the mean of each arm, methods as filled circles, each with its name; returns whether there is one.

    Until latencies are measured, it is accuracy against MACs.
    """
    timed = any(cells.of(arm.name, "latency") for arm in task.arms)
    across = "latency" if timed else "MACs"
    height = "bits" if task.data == "torch-docs" else "test" if task.final else "held"
    points: list[tuple[float, float, Any]] = []
    for arm in task.arms:
        xs, ys = cells.of(arm.name, across), cells.of(arm.name, height)
        if both := xs.keys() & ys.keys():
            points.append((mean(xs[s] for s in both), mean(ys[s] for s in both), arm))
    if not points:
        return False
    figure = import_module("matplotlib.figure").Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    for number, (x, y, arm) in enumerate(points):
        mark = "D" if arm.control is None else MARKS.get(arm.control.kind, "P")
        mark = "o" if arm.make else mark
        axes.plot(
            [x], [y], mark, color=f"C{number % 10}", ms=10 if arm.make else 7, label=arm.name, ls=""
        )
    words = {"latency": "latency over dense, batch 64, eager", "MACs": "MACs over dense"}
    axes.set_xlabel(words[across])
    axes.set_ylabel({"bits": "test, bits per byte"}.get(height, f"{height} accuracy, %"))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    return True
