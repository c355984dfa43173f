"""docs/results.md: for each table its claim, a picture, the verdicts of its targets, and the numbers behind them."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.page import renew
from experiments.columns import Cells
from experiments.plots import plot, plot_rounds
from experiments.store import Store
from experiments.tables import TASKS
from experiments.targets import Verdict, spread
from experiments.task import Task

FILE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
Row = dict[str, Any]
WORDS = {True: "yes", False: "**no**", None: "open"}


def write(store: Store) -> None:
    """Renews the blocks of the tables that there are rows for; the text around them is written by hand."""
    kind = "full" if store.full else "quick"
    blocks = {}
    count = 0
    for task in TASKS:
        rows = store.rows([task])
        if rows:
            cells = Cells(list(rows.values()), store.latencies(rows))
            blocks[f"{task.name} ({kind})"] = section(task, cells, full=store.full)
            count += len(rows)
    renew(FILE, blocks)
    print(f"{FILE.name}: {count} runs, {kind}")


def section(task: Task, cells: Cells, *, full: bool) -> str:
    """Claim, picture, verdicts, table."""
    name = f"results-{re.sub(r'[^a-z0-9]+', '-', task.name.lower())}{'-full' * full}.png"
    drawn = plot(task, cells, FILE.parent / name)
    picture = f"![accuracy against latency: {task.name}]({name})" if drawn else ""
    verdicts = [target.judge(cells) for target in task.targets]
    parts = (task.claim, picture, _verdicts(verdicts), _how(task, cells.rows, full=full))
    rounds = _rounds(task, cells, f"{name.removesuffix('.png')}-rounds.png")
    return "\n\n".join(text for text in (*parts, table(task, cells), *rounds) if text)


def _rounds(task: Task, cells: Cells, name: str) -> tuple[str, str]:
    """Picture and table of what became of arms in rounds; empty where none has rounds."""
    found = {a.name: r for a in task.arms if len(r := cells.rounds(a.name)) > 1}
    if not plot_rounds(task, found, FILE.parent / name):
        return "", ""
    lines = [
        (arm, n, f"{gone:.1f}", f"{accuracy:.2f}", task.published.get(n, ""))
        for arm, one in found.items()
        for n, (gone, accuracy) in one.items()
    ]
    head = ("arm", "activations gone", "layers gone", "held-out %", "published, test %")
    return (
        f"![accuracy against activations that are gone: {task.name}]({name})",
        tabulate(lines, head, "github", disable_numparse=True),
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    lines = [(v.target, WORDS[v.reached], v.figures) for v in verdicts]
    return tabulate(lines, ("target", "reached", "figures"), "github", disable_numparse=True)


def _how(task: Task, rows: Sequence[Row], *, full: bool) -> str:
    """The regime, and what the rows were made with."""
    regime = task.regime(task.full if full else task.quick)
    samples = (
        "all training samples" if regime["samples"] is None else f"{regime['samples']:,} samples"
    )
    how = (
        f"{task.network}, {regime['epochs']} epochs of {samples}, batch {task.batch}, {task.optimizer}, "
        f"{task.schedule} rate {task.rate:g}, weight decay {task.decay:g}."
    )
    command = f'python experiments/run.py{" --full" * full} --only "{task.name}"'
    commits = ", ".join(sorted({r["commit"] for r in rows}))
    versions = ", ".join(sorted({f"torch {r['torch']}, {r['device']}" for r in rows}))
    made = f"`{command}`, {versions}, Python {platform.python_version()}, commits {commits}."
    return " ".join(text for text in (how, task.note, made) if text)


def table(task: Task, cells: Cells) -> str:
    """Mean and standard deviation over the seeds of each arm."""
    text = task.data == "torch-docs"
    shown = {
        "test %": ("test", 2),
        "held-out %": ("held", 2),
        "train %": ("train", 2),
        "bits per byte": ("bits", 3),
        "MACs": ("MACs", 3),
        "parameters": ("parameters", 3),
        "latency 1": ("latency eager 1", 2),
        "latency 64": ("latency eager 64", 2),
        "compiled 1": ("latency compiled 1", 2),
        "compiled 64": ("latency compiled 64", 2),
        "layers": ("layers", 1),
        "blocks": ("blocks", 1),
        "undecided": ("undecided", 1),
        "last removal": ("last removal", 2),
        "time": ("seconds", 2),
    }
    if text:
        del shown["test %"], shown["held-out %"], shown["train %"]
    else:
        del shown["bits per byte"]
    lines = []
    for arm in task.arms:
        seeds = cells.of(arm.name, "MACs")
        if seeds:
            found = [(cells.of(arm.name, column), digits) for column, digits in shown.values()]
            numbers = [spread(list(v.values()), d) if v else "" for v, d in found]
            lines.append([arm.name, str(len(seeds)), *numbers])
    head = ["", "seeds", *shown]
    filled = [i for i in range(len(head)) if i < 2 or any(line[i] for line in lines)]
    kept = [[line[i] for i in filled] for line in lines]
    return tabulate(kept, [head[i] for i in filled], "github", disable_numparse=True)
