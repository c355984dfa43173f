"""The measurements, one a line; each is made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import fxprune as fp
from benchmarks.commit import commit
from benchmarks.quality.real import Real

FILE = Path(__file__).with_name("rows.jsonl")
STEPS = 150
COLUMNS = {"pruned": "", "statistics": " + statistics", "recovered": f" + {STEPS} steps"}
Row = dict[str, Any]


class Cell(NamedTuple):
    """What is measured.

    Attributes:
        table: units, where a share of the MACs stays; layers, where a share of the layers goes.
        network: its name.
        how: the criterion or score, or "dense".
        amount: the share.
        seed: of what depends on chance: what goes at random, and the recovery; else 0.
    """

    table: Literal["units", "layers"]
    network: str
    how: str
    amount: float
    seed: int = 0


def read() -> list[Row]:
    """All rows, oldest first."""
    return list(map(json.loads, FILE.read_text().splitlines())) if FILE.exists() else []


def measure(
    cell: Cell,
    real: Real,
    dense: fp.Program,
    make: Callable[[], fp.Program],
    columns: Sequence[str],
) -> None:
    """Measures the quality of a small network in the columns that have no row yet; that it can't be made is a row, too.

    Args:
        cell: where the rows belong.
        real: the network, its data and its quality.
        dense: the teacher of the recovery.
        make: makes the small network.
        columns: some of `COLUMNS`.
    """
    known = {(*(r[f] for f in Cell._fields), r["column"]) for r in read()}
    missing = [c for c in columns if (*cell, c) not in known and (*cell, "failed") not in known]
    if not missing:
        return
    try:
        small = make()
        for column in missing:
            network = small
            if column == "statistics":
                network = fp.recalibrate(small, real.data)
            if column == "recovered":
                train = _in_order(real.train, cell.seed)
                found = fp.recover(small, dense, train, STEPS, seed=cell.seed, progress=False)
                network = found.network
            _put(cell, real, column, quality=real.quality(network))
    except Exception as error:  # whatever a network or the peer does not bear is said on the page
        line = str(error).splitlines()[0] if str(error) else ""
        _put(cell, real, "failed", why=f"{type(error).__name__}: {line}")


def _in_order(batches: Sequence[Any], seed: int) -> Sequence[Any]:
    """Batches as they are for the first seed, shuffled for others: the recovery goes through them in turn."""
    if not seed:
        return batches
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[i] for i in order.tolist()]


def _put(cell: Cell, real: Real, column: str, **found: Any) -> None:
    row = {**cell._asdict(), "column": column, **found, "measure": real.measure, "commit": commit()}
    with FILE.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(*cell, column, *found.values(), flush=True)
