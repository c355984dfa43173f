"""The numbers of runs that tables, plots and targets speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from statistics import mean
from typing import Any

Row = dict[str, Any]
Rounds = dict[int, tuple[float, float]]
# Latencies are compared at this batch size, without torch.compile.
LATENCY = "eager 64"


@dataclass(frozen=True)
class Cells:
    """The runs of one task.

    Attributes:
        rows: of all arms and seeds.
        latencies: by the name of the run.
    """

    rows: Sequence[Row]
    latencies: dict[str, Row]

    def of(self, arm: str, column: str) -> dict[int, float]:
        """A number by seed; the seeds that have it.

        Args:
            arm: its name.
            column: see `COLUMNS`, or "latency" with a key of the ratios behind it: "latency eager 1".
        """
        # An arm may train another network than the dense one, as a person would pick it.
        dense = {r["seed"]: r["dense"] for r in self.rows if r["arm"] == "dense"}
        rows = [
            {**r, "dense": dense.get(r["seed"], r["dense"])} for r in self.rows if r["arm"] == arm
        ]
        if column.startswith("latency"):
            return self._latencies(rows, column.removeprefix("latency").strip() or LATENCY)
        if column == "seconds":
            whole = {r["seed"]: r["seconds"] for r in self.rows if r["arm"] == "dense"}
            return {r["seed"]: r["seconds"] / whole[r["seed"]] for r in rows if r["seed"] in whole}
        return {r["seed"]: COLUMNS[column](r) for r in rows if column != "test" or "test" in r}

    def rounds(self, arm: str) -> Rounds:
        """What became of an arm at the ends of its rounds: the means over its seeds.

        Returns:
            The layers that are gone, and the accuracy in %, by the number of activations that are gone.
        """
        found: dict[int, list[tuple[float, float]]] = {}
        for row in self.rows:
            for linear, gone, accuracy in row.get("rounds", ()) if row["arm"] == arm else ():
                found.setdefault(linear, []).append((gone, 100 * accuracy))
        return {n: (mean(g for g, _ in v), mean(a for _, a in v)) for n, v in sorted(found.items())}

    def _latencies(self, rows: Sequence[Row], key: str) -> dict[int, float]:
        found = {
            r["seed"]: self.latencies[r["name"]]["ratios"]
            for r in rows
            if r["name"] in self.latencies
        }
        return {seed: ratios[key] for seed, ratios in found.items() if key in ratios}


COLUMNS: dict[str, Callable[[Row], float]] = {
    "test": lambda r: 100 * r["test"],
    "held": lambda r: 100 * r["held"],
    "train": lambda r: 100 * r["train"],
    "bits": lambda r: r["test_loss" if "test_loss" in r else "held_loss"] / log(2),
    "MACs": lambda r: r["macs"] / r["dense"]["macs"],
    "parameters": lambda r: r["parameters"] / r["dense"]["parameters"],
    "layers": lambda r: r["layers"],
    "layers left": lambda r: r["layers"] / r["dense"]["layers"],
    "blocks": lambda r: r["blocks_left"],
    "undecided": lambda r: r["undecided"],
    "last removal": lambda r: r["last_removal"] / r["epochs"],
}
