"""Renders `docs/benchmarks.md` from the JSON that pytest-benchmark writes, and what all pages share.

    python -m benchmarks.page [--baseline]

With `--baseline` the ratios of this run also become those that later runs are compared with.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commit import commit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / ".results"
BASELINE = ROOT / "benchmarks" / "baseline.json"
PAGE = ROOT / "docs" / "benchmarks.md"
END = "<!-- end -->\n"
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy", "scipy")


def renew(file: Path, blocks: Mapping[str, str]) -> None:
    """Puts blocks of text into a page, each in the place of the one of its name; all else stays.

    Args:
        file: the page, Markdown.
        blocks: name -> text; a block that is new comes at the end, with a heading of its name.
    """
    text = file.read_text() if file.exists() else ""
    for name, content in blocks.items():
        start = f"<!-- {name} -->\n"
        block = f"{start}{content}\n{END}"
        found = re.search(re.escape(start) + r".*?" + re.escape(END), text, re.DOTALL)
        if found:
            text = text[: found.start()] + block + text[found.end() :]
        else:
            text = f"{text.rstrip()}\n\n## {name}\n\n{block}".lstrip()
    file.write_text(text)


def markdown(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table, the first column to the left; what a row has not is left out."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    cells = ([show(row.get(c)) for c in columns] for row in rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, rule, *cells))


def show(x: object) -> str:
    """A cell of a table."""
    if x is None or isinstance(x, bool):
        return {None: "", True: "yes", False: "**no**"}[x]
    if isinstance(x, float):
        return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
    return f"{x:,}" if isinstance(x, int) else str(x)


def verdict(reached: bool) -> str:
    """Whether a target is met, for people."""
    return "reached" if reached else "**missed**"


def made_with(commits: Iterable[str]) -> str:
    """What numbers were measured with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    return (
        f"Measured with fxprune at {', '.join(sorted(set(commits)))}, Python {platform.python_version()}, "
        f"{', '.join(f'{n} {version(n)}' for n in LIBRARIES)}, "
        f"on {os.cpu_count()} cores of {models[0] if models else platform.processor()}.\n"
    )


def section(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """A summary and the table of one group of benchmarks, which measured ratios."""
    rows = [_row(b["extra_info"], b["stats"]) for b in benchmarks]
    ratios = [b["extra_info"]["ratio"] for b in benchmarks]
    good = [r[""] for r in rows].count(verdict(True))
    wanted = sum(r["at most"] is not None for r in rows)
    lines = [f"- Ratios: median {median(ratios):.3f}, highest {max(ratios):.3f}."]
    if wanted:
        lines.append(f"- Within their limits: {good} of {wanted}; {verdict(good == wanted)}.")
    return "\n".join((*lines, "", markdown(list(rows[0]), rows), made_with([commit()])))


def _row(info: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    ratio, limit = info["ratio"], info["at most"]
    return {
        **{k: x for k, x in info.items() if k not in ("ratio", "at most")},
        "ratio": f"{ratio:.3f}",
        "quartiles": f"{stats['q1']:.3f} to {stats['q3']:.3f}",
        "at most": limit,
        "": "" if limit is None else verdict(ratio <= limit),
    }


def write_baseline(benchmarks: Iterable[Mapping[str, Any]]) -> None:
    """Keeps the ratios of a run, one benchmark a line: what pytest-benchmark needs for a comparison."""
    fields = "min max mean stddev median iqr ops rounds iterations outliers".split()
    rows = [
        {"fullname": b["fullname"], "stats": {k: b["stats"][k] for k in fields}} for b in benchmarks
    ]
    lines = ",\n".join(re.sub(r"(\.\d{4})\d+", r"\1", json.dumps(row)) for row in rows)
    BASELINE.write_text(f'{{"benchmarks": [\n{lines}\n]}}\n')


def main() -> None:
    """Renders the groups of the last run; the others stay."""
    benchmarks = json.loads((RESULTS / "bench.json").read_text())["benchmarks"]
    groups = dict.fromkeys(b["group"] for b in benchmarks)
    renew(PAGE, {g: section([b for b in benchmarks if b["group"] == g]) for g in groups})
    if "--baseline" in sys.argv:
        write_baseline(benchmarks)
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
