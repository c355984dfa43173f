"""Trains and measures what is missing of the experiments, and writes docs/results.md.

python experiments/run.py --only "MNIST*"    the runs of some tables
python experiments/run.py --latency          then, on an idle machine: the latencies of the networks that came out
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from benchmarks.commit import commit
from experiments import page, timing
from experiments.data import load
from experiments.store import Peer, Row, Store, name_of
from experiments.tables import TASKS
from experiments.task import Arm, Task
from experiments.training import OutOfTimeError, Run

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Reads the options; one process for each run."""
    options = _options()
    torch.set_num_threads(options.threads)
    store = Store(options.folder, options.full)
    tasks = [t for t in TASKS if fnmatchcase(t.name, options.only)]
    if options.one:
        print(json.dumps(_one(options.one, store, options)))
        return
    if options.latency:
        timing.measure(store, tasks, compiled=options.compile, device=options.device)
    elif not options.render:
        for task in tasks:
            _train(task, store, options)
    page.write(store)


def _train(task: Task, store: Store, options: argparse.Namespace) -> None:
    """The runs of a table; those of controls come behind the others, since they need what these came to."""
    for stage in (False, True):
        arms = [
            a for a in task.arms if bool(a.control) == stage and fnmatchcase(a.name, options.arm)
        ]
        cells = [(a, s) for s in task.seeds[: options.seeds] for a in arms]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda c: _cell(task, c[0], c[1], store, options), cells))


def _cell(task: Task, arm: Arm, seed: int, store: Store, options: argparse.Namespace) -> None:
    """One run in a process of its own, where its row is missing; a failure is a row too."""
    known = store.rows([task])
    name = name_of(task, arm, seed)
    if name in known or time.time() > options.deadline:
        return
    if arm.control and not _peer(task, arm, seed, store):
        print(f"{name}: left out, there is no finished run of {arm.control.like}", flush=True)
        return
    began = time.time()
    command = [sys.executable, __file__, "--one", name, *_passed_on(options)]
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **threads}
    )
    lines = done.stdout.strip().splitlines()
    row: Row = {"ok": False, "why": done.stderr.strip().splitlines()[-12:]}
    if done.returncode == 0 and lines:
        row = json.loads(lines[-1])
    if row.get("later"):
        print(f"{name}: goes on with the next call", flush=True)
        return
    length = task.full if options.full else task.quick
    row |= {"name": name, "task": task.name, "arm": arm.name, "seed": seed, "full": options.full}
    row |= {
        "regime": task.regime(length),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    row |= {"commit": commit(), "torch": torch.__version__, "device": options.device}
    store.add("rows.jsonl", row)
    print(f"{name} {time.time() - began:.0f} s {_said(row)}", flush=True)


def _said(row: Row) -> str:
    if not row["ok"]:
        return f"FAILED {row['why'][-1:]}"
    macs = row["macs"] / row["dense"]["macs"]
    left = f"MACs {macs:.2f}, blocks {row['blocks_left']}, undecided {row['undecided']}"
    return f"held {100 * row['held']:.2f}, {left}, last removal {row['last_removal']}"


def _peer(task: Task, arm: Arm, seed: int, store: Store) -> Peer | None:
    """The run that a control is like, where it is finished and its networks are there."""
    if arm.control is None:
        return None
    like = next(a for a in task.arms if a.name == arm.control.like)
    name = name_of(task, like, seed)
    row, folder = store.rows([task]).get(name), store.finished(name)
    return Peer(row, folder) if row and (folder / "final").exists() else None


def _one(name: str, store: Store, options: argparse.Namespace) -> Row:
    """The work of a process."""
    title, arm_name, seed = name.rsplit("/", 2)
    task = next(t for t in TASKS if t.name == title)
    arm = next(a for a in task.arms if a.name == arm_name)
    length = task.full if store.full else task.quick
    peer = _peer(task, arm, int(seed), store)
    run = Run(
        task,
        arm,
        int(seed),
        length,
        store.running(name),
        store.finished(name),
        peer,
        options.deadline,
    )
    try:
        return {"ok": True, **run.train(load(task.data, options.data), options.device)}
    except OutOfTimeError:
        return {"ok": False, "later": True}
    except Exception:
        return {"ok": False, "why": traceback.format_exc().splitlines()[-12:]}


def _passed_on(options: argparse.Namespace) -> list[str]:
    command = ["--device", options.device, "--folder", str(options.folder)]
    command += ["--threads", str(options.threads), "--deadline", str(options.deadline)]
    command += ["--full"] * options.full
    return command + (["--data", str(options.data)] if options.data else [])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--only", default="*", help="glob of the headings of tables")
    add("--arm", default="*", help="glob of the names of arms")
    add("--seeds", type=int, default=3, help="how many of each table's")
    add("--jobs", type=int, default=os.cpu_count() or 2, help="processes at once")
    add("--threads", type=int, default=1, help="of each process")
    add("--full", action="store_true", help="the papers' lengths; for a GPU")
    add("--device", default="cpu")
    add("--data", type=Path, help="folder of data sets in torchvision's own layout")
    add("--folder", type=Path, default=HERE, help="of rows, checkpoints and networks")
    add("--minutes", type=float, default=math.inf, help="stop at checkpoints behind so long")
    add("--latency", action="store_true", help="time the networks that came out, train nothing")
    add("--compile", action="store_true", help="with --latency: under torch.compile, too")
    add("--render", action="store_true", help="write the page, run nothing")
    add("--one", help=argparse.SUPPRESS)
    add("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.deadline is None:
        options.deadline = time.time() + 60 * options.minutes
    return options


if __name__ == "__main__":
    main()
