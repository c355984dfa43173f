"""Trains and measures what is missing of the experiments, and writes docs/results.md.

python experiments/run.py --only MNIST
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.commit import commit
from experiments import page
from experiments.data import load
from experiments.runs import TASKS
from experiments.task import Arm, Task
from experiments.training import Run

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "experiments" / "rows.jsonl"
RUNNING = ROOT / "experiments" / ".running"
Row = dict[str, Any]


def main() -> None:
    """Reads the options; one process for each run."""
    options = _options()
    if options.one:
        print(json.dumps(_one(options)))
        return
    if not options.render:
        tasks = [t for t in TASKS if re.search(options.only, t.name)]
        for task in tasks:
            for stage in (False, True):  # controls need the sizes that the others came to
                arms = [a for a in task.arms if bool(a.control) == stage]
                cells = [(task, a, s) for a in arms for s in range(options.seeds)]
                with ThreadPoolExecutor(options.jobs) as pool:
                    list(pool.map(lambda c: _cell(c[0], c[1], c[2], options), cells))
    page.write(list(rows(options.full)), full=options.full)


def rows(full: bool) -> Iterator[Row]:
    """The newest good row of each cell."""
    found: dict[str, Row] = {}
    for line in ROWS.read_text().splitlines() if ROWS.exists() else ():
        row = json.loads(line)
        if row["ok"] and row["full"] == full:
            found[row["name"]] = row
    yield from found.values()


def _name(task: Task, arm: Arm, seed: int) -> str:
    return f"{task.name}/{arm.name}/{seed}"


def _cell(task: Task, arm: Arm, seed: int, options: argparse.Namespace) -> None:
    """One run in a process of its own, where its row is missing; a failure is a row too."""
    known = {row["name"]: row for row in rows(options.full)}
    name = _name(task, arm, seed)
    if name in known:
        return
    keep = 1.0
    if arm.like:
        like = known.get(_name(task, next(a for a in task.arms if a.name == arm.like), seed))
        if like is None:
            print(f"{name}: left out, {arm.like} has no row", flush=True)
            return
        key = {"params": "parameters", "macs": "macs"}[task.metric]
        keep = like[key] / like["dense"][key]
    began = time.time()
    command = [sys.executable, __file__, "--one", name, "--keep", str(keep)]
    command += ["--device", options.device] + ["--full"] * options.full
    if options.data:
        command += ["--data", str(options.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    tail = done.stderr.strip().splitlines()[-12:]
    row: Row = {"ok": False, "why": tail}
    if done.returncode == 0 and lines:
        row = json.loads(lines[-1])
    row |= {"name": name, "task": task.name, "arm": arm.name, "seed": seed, "full": options.full}
    row |= {"keep": keep, "commit": commit(), "torch": torch.__version__, "device": options.device}
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    state = f"test {100 * row['test']:.2f}" if row["ok"] else f"FAILED {row['why'][-1:]}"
    print(f"{name} {time.time() - began:.0f} s {state}", flush=True)


def _one(options: argparse.Namespace) -> Row:
    """The work of a process."""
    title, arm_name, seed = options.one.rsplit("/", 2)
    task = next(t for t in TASKS if t.name == title)
    arm = next(a for a in task.arms if a.name == arm_name)
    length = task.full if options.full else task.quick
    folder = RUNNING / re.sub(r"[^\w.-]+", "_", f"{options.one}-{options.full}")
    data = load(task.data, options.data).to(options.device)
    try:
        run = Run(task, arm, int(seed), length, options.keep, folder)
        return {"ok": True, **run.train(data, options.device)}
    except Exception:
        return {"ok": False, "why": traceback.format_exc().splitlines()[-12:]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="tables whose heading matches this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--full", action="store_true", help="the papers' lengths; for a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="folder of data sets in torchvision's own layout")
    parser.add_argument("--render", action="store_true", help="write the page, run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=float, default=1.0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
