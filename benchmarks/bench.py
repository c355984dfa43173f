"""Times and memory: the tables of `docs/benchmarks.md`.

    python benchmarks/bench.py [TABLE ...] [--only REGEX] [--fresh] [--render]

TABLE is share, depth, llm, latency, torch_pruning, leaves or methods; all of them by default. Results are kept in
`benchmarks/.results/TABLE.jsonl` as they come, so a run that was stopped goes on where it was. Their
sections of the page are written at the end, or by `--render` alone; the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol, TypeVar, cast

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / ".results"
PAGE = ROOT / "docs" / "benchmarks.md"
TABLES = ("share", "depth", "llm", "latency", "torch_pruning", "leaves", "methods")
MARK = "ROW "
RATIO_HEAD = ("ratio", "quartiles", "at most", "")
# Not this folder: its torch_pruning.py would hide the package of that name.
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "benchmarks")]

from benchmarks.commit import commit  # noqa: E402
from benchmarks.page import renew  # noqa: E402

Row = dict[str, Any]
T = TypeVar("T")


class Table(Protocol):
    """What a module of a table offers.

    Attributes:
        THREADS: threads of torch while its cases run.
        ALONE: whether every case has a process of its own.
    """

    THREADS: int
    ALONE: bool

    def cases(self) -> list[str]:
        """Names of what is measured, in order."""

    def measure(self, case: str) -> Row:
        """The numbers of one case."""

    def render(self, rows: Sequence[Row]) -> str:
        """The section of the page."""


def table_of(name: str) -> Table:
    """The module of a table."""
    return cast("Table", import_module(f"benchmarks.{name}"))


# What the tables share


class Clock:
    """CPU seconds of this process, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns; its CPU time is kept under `name`."""
        start = time.process_time()
        result = work()
        self.seconds[name] = time.process_time() - start
        return result

    @property
    def total(self) -> float:
        """The sum of all that was measured."""
        return sum(self.seconds.values())


def alternate(
    first: Callable[[], object], second: Callable[[], object], rounds: int, warm: int = 2
) -> dict[str, float]:
    """Wall time of two pieces of work that take turns, so that what else the machine does falls on both.

    Returns:
        `first_s` and `second_s`, medians; `ratio`, the median over the rounds of second / first; `low` and
        `high`, its quartiles.
    """
    pairs: list[dict[bool, float]] = []
    for i in range(warm + rounds):
        pair = {}
        for late in (False, True) if i % 2 else (True, False):
            start = time.perf_counter()
            (second if late else first)()
            pair[late] = time.perf_counter() - start
        pairs.append(pair)
    kept = pairs[warm:]
    low, middle, high = quantiles((p[True] / p[False] for p in kept), n=4)
    medians = [median(p[late] for p in kept) for late in (False, True)]
    return {
        "first_s": medians[0],
        "second_s": medians[1],
        "ratio": middle,
        "low": low,
        "high": high,
    }


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
    return "\n".join(lines) + "\n"


def ratio_cells(row: Row) -> list[str]:
    """What `alternate` found, and whether it is within `limit`; for columns `RATIO_HEAD`."""
    return [
        f"{row['ratio']:.3f}",
        f"{row['low']:.3f} to {row['high']:.3f}",
        f"{row['limit']:.2f}",
        verdict(row["ratio"] <= row["limit"]),
    ]


def verdict(reached: bool) -> str:
    """Whether a target is met, for people."""
    return "reached" if reached else "**missed**"


def failures(rows: Sequence[Row]) -> str:
    """The cases that failed, as a list."""
    lines = [f"- `{r['case']}` failed: {r['failure'][:300]}" for r in rows if "failure" in r]
    return "\n".join(lines) + ("\n" if lines else "")


# Running


def run_table(name: str, only: str, *, fresh: bool) -> None:
    """Measures the cases of a table that have no row yet."""
    table = table_of(name)
    if fresh:
        _file(name).unlink(missing_ok=True)
    done = {r["case"] for r in read_rows(name) if "failure" not in r}
    pending = [c for c in table.cases() if c not in done and re.search(only, c)]
    while pending:
        batch = pending[:1] if table.ALONE else pending
        for row in _stream(name, batch, table.THREADS):
            _append(name, row)
            pending.remove(row["case"])


def _stream(name: str, cases: list[str], threads: int) -> Iterable[Row]:
    """The rows of a process as they come; a row that says so for the case at which it died."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--work", name, *cases]
    left = list(cases)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                row: Row = json.loads(line.removeprefix(MARK))
                left.remove(row["case"])
                print(f"{name} {row['case']}: {row.get('failure', 'done')}"[:200], flush=True)
                yield row
    if left:
        yield {"case": left[0], "failure": f"the process ended with {process.returncode}"}


def work(name: str, cases: Iterable[str]) -> None:
    """The work of a process: prints a row for each case."""
    import torch

    table = table_of(name)
    torch.set_num_threads(table.THREADS)
    for case in cases:
        torch.manual_seed(0)
        try:
            row = {"case": case, **table.measure(case), "commit": commit()}
        except Exception as error:  # a row for every case, whatever it met
            row = {"case": case, "failure": f"{type(error).__name__}: {error}"}
        print(f"\n{MARK}{json.dumps(row)}", flush=True)


def _file(name: str) -> Path:
    return RESULTS / f"{name}.jsonl"


def read_rows(name: str) -> list[Row]:
    """The newest row of each case, in the order of the table."""
    if not _file(name).exists():
        return []
    rows = [json.loads(line) for line in _file(name).read_text().splitlines() if line]
    newest = {row["case"]: row for row in rows}
    return [newest[c] for c in table_of(name).cases() if c in newest]


def _append(name: str, row: Row) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / ".gitignore").write_text("*\n")
    with _file(name).open("a") as file:
        file.write(json.dumps(row) + "\n")


# The page


def sections() -> dict[str, str]:
    """The text of each table that there are rows for, with what it was measured with."""
    known = {name: rows for name in TABLES if (rows := read_rows(name))}
    return {
        name: "\n".join(
            (f"{table_of(name).render(rows).rstrip()}\n", failures(rows), _measured(rows))
        )
        for name, rows in known.items()
    }


def _measured(rows: Sequence[Row]) -> str:
    commits = ", ".join(sorted({r["commit"] for r in rows if "commit" in r}))
    return f"{_versions()} fxprune at {commits}. {_machine()}\n"


def _versions() -> str:
    names = ("torch", "torchvision", "transformers", "torch-pruning", "numpy", "scipy")
    found = ", ".join(f"{n} {version(n)}" for n in names)
    return f"Python {platform.python_version()}, {found}."


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    return f"CPU: {models[0] if models else platform.processor()}, {os.cpu_count()} cores."


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--only", default="", help="cases whose name matches this")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--render", action="store_true", help="write the page, run nothing")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], options.work[1:])
        return
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    for name in () if options.render else options.tables or TABLES:
        run_table(name, options.only, fresh=options.fresh)
    PAGE.parent.mkdir(exist_ok=True)
    renew(PAGE, sections(), titled=False)
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
