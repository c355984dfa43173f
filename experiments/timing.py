"""Latencies of the networks that came out of runs, over those of the dense ones: one pass, on an idle machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

import fxprune as fp
from benchmarks.commit import commit
from experiments.placed import placed
from experiments.start import start
from experiments.store import Row, Store, name_of
from experiments.task import Task
from fxprune.graph.program import Program
from fxprune.report.latency import compare_latency
from fxprune_passes.methods.method import for_use

BATCHES = (1, 64)
ROUNDS = 101


def measure(store: Store, tasks: Sequence[Task], *, compiled: bool, device: str) -> None:
    """Times every finished network without a latency next to the dense network of its task and seed.

    Args:
        store: where rows and networks are; latencies go to `latency.jsonl` there.
        tasks: whose runs are timed.
        compiled: whether networks are also timed under torch.compile.
        device: where they run.
    """
    for task in tasks:
        rows = store.rows([task])
        known = store.latencies(rows)
        for row in rows.values():
            old = known.get(row["name"])
            if old is None or (compiled and "compiled 1" not in old["ratios"]):
                _measure(store, task, row, compiled=compiled, device=device)


def _measure(store: Store, task: Task, row: Row, *, compiled: bool, device: str) -> None:
    end = store.finished(row["name"]) / "final"
    if not end.exists():
        print(f"{row['name']}: left out, there is no {end}", flush=True)
        return
    final = placed(fp.load(end), device)
    trained = store.finished(name_of(task, task.arms[0], row["seed"])) / "final"
    if trained.exists():
        dense = placed(fp.load(trained), device)
    else:  # weights hardly matter to a latency
        dense = for_use(start(task, task.arms[0], row["seed"], final.args, device), verify=False)
    pair = dense, final
    ratios: dict[str, float] = {}
    for batch in BATCHES:
        ratios[f"eager {batch}"] = _ratio(*pair, batch, lambda program: program)
        if compiled:
            ratios[f"compiled {batch}"] = _ratio(*pair, batch, _compiled)
    line = {"name": row["name"], "of": row["made"], "ratios": ratios, "device": device}
    line |= {"threads": torch.get_num_threads(), "commit": commit(), "torch": torch.__version__}
    store.add("latency.jsonl", line)
    said = ", ".join(f"{k} {v:.2f}" for k, v in ratios.items())
    print(f"{row['name']}: {said}", flush=True)


def _ratio(before: Program, after: Program, batch: int, how: Callable[[Program], Program]) -> float:
    args = tuple(x[:batch] for x in before.args)
    pair = (how(replace(p, args=args)) for p in (before, after))
    return round(compare_latency(*pair, rounds=ROUNDS).ratio, 4)


def _compiled(program: Program) -> Program:
    return replace(program, module=torch.compile(program.module))  # type: ignore[arg-type]
