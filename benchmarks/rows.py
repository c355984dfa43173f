"""One row per network, each measured in a process of its own; rows are kept as they come."""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.commit import commit
from benchmarks.networks import Network, networks

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows that a script measures.

    Attributes:
        script: called with `--one NAME` it prints a row; see `one`.
        name: of the file of results, which git does not see.
    """

    script: Path
    name: str

    @property
    def file(self) -> Path:
        """JSON lines, newest last."""
        return ROOT / "benchmarks" / ".results" / f"{self.name}.jsonl"

    def read(self) -> dict[str, Row]:
        """The newest row of each network."""
        if not self.file.exists():
            return {}
        rows = [json.loads(line) for line in self.file.read_text().splitlines() if line]
        return {row["name"]: row for row in rows}

    def measure(
        self,
        chosen: Iterable[Network],
        options: argparse.Namespace,
        is_done: Callable[[Row], bool] = bool,
    ) -> None:
        """Measures what has no good row yet, one process after another."""
        if options.fresh:
            self.file.unlink(missing_ok=True)
        done = self.read()
        every = list(chosen)
        for i, network in enumerate(every, 1):
            known = done.get(network.name)
            if known and known.get("ok") and is_done(known) and not options.again:
                continue
            start = time.time()
            row = self._measure_one(network, options)
            row["commit"] = commit()
            self._append(row)
            state = "ok" if row.get("ok") else f"FAILED {str(row.get('why')).splitlines()[0][:160]}"
            print(
                f"{i}/{len(every)} {network.name} {time.time() - start:.0f} s {state}", flush=True
            )

    def _measure_one(self, network: Network, options: argparse.Namespace) -> Row:
        """One network in a process with limits; a failure is a row too."""
        command = [sys.executable, str(self.script), "--one", network.name]
        empty: Row = {"name": network.name, "kind": network.kind, "ok": False}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=options.timeout,
                check=False,
                preexec_fn=lambda: _limit_memory(options.memory),
            )
        except subprocess.TimeoutExpired:
            return {**empty, "why": f"more than {options.timeout} s"}
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            row: Row = json.loads(lines[-1])
            return row
        tail = done.stderr.strip().splitlines()[-12:]
        return {**empty, "why": (tail[-1] if tail else f"exit {done.returncode}"), "trace": tail}

    def _append(self, row: Row) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        (self.file.parent / ".gitignore").write_text("*\n")
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def one(name: str, measure: Callable[[Network], Row]) -> None:
    """The work of a process: prints the row as JSON."""
    network = next(n for n in networks(timm=name.startswith("timm:")) if n.name == name)
    row: Row = {"name": name, "kind": network.kind, "ok": False}
    try:
        row = measure(network)
    except Exception as error:  # a row for every network, whatever it met
        row["why"] = f"{type(error).__name__}: {error}"
        row["trace"] = traceback.format_exc().splitlines()[-12:]
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print("\n" + json.dumps(row))


@dataclass(frozen=True)
class Page:
    """A page of rows.

    Attributes:
        file: the page, Markdown.
        render: its text, from the rows and the networks in order.
    """

    file: Path
    render: Callable[[Mapping[str, Row], list[Network]], str]


def main(
    rows: Rows,
    page: Page,
    measure: Callable[[Network], Row],
    about: str,
    is_done: Callable[[Row], bool] = bool,
) -> None:
    """Reads the options of a script of rows, measures what is missing, and writes the page."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    _add_options(parser)
    options = parser.parse_args()
    if options.one:
        one(options.one, measure)
        return
    every = networks(timm=options.timm)
    if not options.render:
        rows.measure([n for n in every if re.search(options.only, n.name)], options, is_done)
    known = rows.read()
    order = networks(timm=any(n.startswith("timm:") for n in known))
    page.file.write_text(page.render(known, order))
    bad = [n.name for n in every if not known.get(n.name, {}).get("ok")]
    print(
        f"{page.file.relative_to(ROOT)}: {len(known)} networks, {len(bad)} missing or not verified"
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="networks whose name matches this")
    parser.add_argument("--timm", action="store_true", help="one of each timm family too")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--again", action="store_true", help="run what was verified before, too")
    parser.add_argument("--render", action="store_true", help="write the page, run nothing")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one network")
    parser.add_argument("--memory", type=float, default=16, help="GiB for one network")
    parser.add_argument("--one", help=argparse.SUPPRESS)


def _limit_memory(gibibytes: float) -> None:
    limit = int(gibibytes * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
