"""The tables of docs/results.md; the text around them is written by hand."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

from benchmarks.page import renew
from experiments.runs import TASKS
from experiments.task import Task

FILE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
Row = dict[str, Any]
COUNTED = {"params": "parameters", "macs": "MACs"}
HEAD = ("", "seeds", "test %", "train %", "parameters", "MACs", "layers", "latency", "step")


def write(rows: Sequence[Row], *, full: bool) -> None:
    """Puts the tables that there are rows for between the marks of their names in the page."""
    kind = "full" if full else "quick"
    of_task = {t: [r for r in rows if r["task"] == t.name] for t in TASKS}
    blocks = {f"{t.name} ({kind})": table(t, own, full=full) for t, own in of_task.items() if own}
    renew(FILE, blocks)
    print(f"{FILE.name}: {len(rows)} runs, {kind}")


def table(task: Task, rows: Sequence[Row], *, full: bool) -> str:
    """Mean and spread of the seeds of each arm."""
    length = task.full if full else task.quick
    lines = []
    for arm in task.arms:
        own = [r for r in rows if r["arm"] == arm.name]
        if own:
            lines.append([arm.name, len(own), *_numbers(own)])
    images = "all training images" if length.images is None else f"{length.images:,} images"
    how = (
        f"{length.epochs} epochs of {images}, batch {task.batch}, learning rate {task.rate}, "
        f"weight decay {task.decay:g}; controls have the same number of {COUNTED[task.metric]}."
    )
    command = f'python experiments/run.py{" --full" if full else ""} --only "{task.name}"'
    commits = ", ".join(sorted({r["commit"] for r in rows}))
    python = platform.python_version()
    made = f"`{command}`, torch {rows[0]['torch']}, Python {python}, {rows[0]['device']}, commits {commits}."
    shown = tabulate(lines, HEAD, tablefmt="github", disable_numparse=True)
    return "\n\n".join(text for text in (how, task.note, made, shown) if text)


def _numbers(rows: Sequence[Row]) -> list[str]:
    def of(value: Any, digits: int, scale: float = 1.0) -> str:
        found = [scale * value(r) for r in rows]
        spread = f" ± {stdev(found):,.{digits}f}" if len(found) > 1 else ""
        return f"{mean(found):,.{digits}f}{spread}"

    return [
        of(lambda r: r["test"], 2, 100),
        of(lambda r: r["train"], 2, 100),
        of(lambda r: r["parameters"], 0),
        of(lambda r: r["macs"] / r["dense"]["macs"], 3),
        of(lambda r: r["layers"], 1),
        of(lambda r: r["latency"], 2),
        of(lambda r: r["step"], 2),
    ]
