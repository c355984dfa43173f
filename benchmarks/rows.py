"""One row per network, each measured in a process of its own; rows are kept as they come.

pytest-benchmark can't do this: it measures in its own process, which one network that takes too much memory would end.
"""

from __future__ import annotations

import json
import re
import resource
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import typer

from benchmarks.commit import commit
from benchmarks.networks import Network, networks
from benchmarks.page import made_with, markdown, renew

Row = dict[str, Any]
Measure = Callable[[Network, Row], None]
BYTES, SECONDS = 16 * 2**30, 900  # that a network may take


@dataclass(frozen=True)
class Rows:
    """The rows of one table.

    Attributes:
        file: of the results: JSON lines, the newest row of each network.
        measure: fills the row of a network, in a process of its own; a row with a `why` is bad.
        page: what the table is in.
        block: its name there.
        render: its text, from the rows in order and the number of networks.
        networks: the networks in order.
    """

    file: Path
    measure: Measure
    page: Path
    block: str
    render: Callable[[list[Row], int], str]
    networks: Callable[[], list[Network]] = networks

    def read(self) -> dict[str, Row]:
        """The newest row of each network."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return {row["name"]: row for row in map(json.loads, lines)}

    def write(self, rows: Mapping[str, Row]) -> None:
        """Writes the newest row of each network."""
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))

    def main(
        self, only: str = "", timm: bool = False, fresh: bool = False, render: bool = False
    ) -> None:
        """Measures what has no good row yet, and writes the page.

        Args:
            only: regular expression for the names of the networks to measure.
            timm: one of each timm family too.
            fresh: forget what was measured of them before.
            render: measure nothing.
        """
        known = self.read()
        every = [n for n in self.networks() if timm or n.kind != "timm" or n.name in known]
        chosen = [n for n in every if re.search(only, n.name) and not render]
        if fresh:
            forgotten = {n.name for n in chosen}
            known = {name: row for name, row in known.items() if name not in forgotten}
            self.write(known)
        for i, network in enumerate(chosen, 1):
            if network.name in known and known[network.name]["verified"]:
                continue
            start = time.time()
            row = _in_process(self.measure, network)
            self.write(self.read() | {network.name: row})
            said = "ok" if row["verified"] else f"FAILED {row['why']}"
            print(
                f"{i}/{len(chosen)} {network.name} {time.time() - start:.0f} s {said}", flush=True
            )
        known = self.read()
        rows = [known[n.name] for n in every if n.name in known]
        text = self.render(rows, len(every))
        renew(self.page, {self.block: f"{text}\n{made_with(r['commit'] for r in rows)}"})
        print(f"{self.page.name}: {len(rows)} of {len(every)} networks, {len(bad(rows))} bad")

    def run(self) -> None:
        """The command line."""
        typer.run(self.main)


def _in_process(measure: Measure, network: Network) -> Row:
    """The row of a network, from a process with limits; a failure is a row too."""
    row: Row = {"name": network.name, "network": network.name.split(":")[-1], "kind": network.kind}
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            row |= pool.submit(_work, measure, network).result()
    except BrokenProcessPool:
        row["why"] = (
            f"the process was killed, by the limit of {SECONDS} CPU seconds or for its memory"
        )
    return row | {"verified": "why" not in row, "commit": commit()}


def _work(measure: Measure, network: Network) -> Row:
    """What the process does."""
    import torch

    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    row: Row = {}
    try:
        measure(network, row)
    except Exception as error:  # a row for every network, whatever it met
        row["why"] = f"{type(error).__name__}: {error}"
        row["trace"] = traceback.format_exc().splitlines()[-12:]
    row["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return row


def bad(rows: Iterable[Row]) -> list[str]:
    """What went wrong, as the lines of a list."""
    return [f"- `{r['name']}`: {r['why'].splitlines()[0][:300]}" for r in rows if "why" in r]


def tables(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A table for each kind of network, with the columns that its rows have, and a list of those not verified."""
    parts = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        own = [r for r in rows if r["kind"] == kind]
        table = markdown([c for c in columns if any(c in r for r in own)], own)
        parts.append(f"### {kind.replace('_', ' ').capitalize()}\n\n{table}")
    if lines := bad(rows):
        parts.append("\n".join(("### Not verified\n", *lines, "")))
    return "\n".join(parts)


def totals(rows: Sequence[Row], wanted: int) -> list[str]:
    """How many networks are verified, and the worst errors."""
    good = [r for r in rows if r["verified"]]
    worst = {d: max((r[d] for r in good), default=0.0) for d in ("float64", "float32")}
    return [
        f"- {len(good)} of {wanted} networks verified, {wanted - len(rows)} not run.",
        *(f"- Worst error in {dtype}: {error:.1e}." for dtype, error in worst.items()),
    ]
