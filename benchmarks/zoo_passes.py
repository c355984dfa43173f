"""The zoo through the passes: a third of its blocks gated off, every exact rewrite, verified.

    python -m benchmarks.zoo_passes [--only REGEX] [--timm] [--fresh] [--render]

Results are kept as in `benchmarks/zoo.py`; `docs/zoo-passes.md` is renewed at the end.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

import fxprune as fp
from benchmarks.networks import Network
from benchmarks.page import RESULTS, ROOT
from benchmarks.rows import Row, Rows, tables, totals
from benchmarks.stages import Laps, count
from fxprune.graph.gate import gates
from fxprune.structure.blocks import find_blocks
from fxprune.verify import compare_functions, in_double, randomised

EXACT = (
    "repeat{max=6}(drop-identity | merge-duplicates | fold-constants | fold-batchnorm | "
    "fuse-linear | dead-code)"
)
COLUMNS = (
    *("network", "blocks", "deleted", "nodes", "after", "parameters", "left %", "norms folded"),
    *("layers fused", "other rewrites", "float64", "float32", "seconds", "verified"),
)


def measure(network: Network, row: Row) -> None:
    """Closes the gates of a third of the blocks of a network, rewrites it, and compares the two."""
    model, args, kwargs = network.build()
    capture: Any = fp.capture_partial if network.partial else fp.capture
    captured = capture(model, args, kwargs)
    program = in_double(randomised(captured.program if network.partial else captured, 0))
    gated = fp.run(program, None, "insert-gates", verify=False).program
    paths = list(gates(gated))
    third = max(1, round(len(paths) / 3)) if paths else 0
    for path in sorted(
        np.random.default_rng(0).choice(paths, third, replace=False) if paths else ()
    ):
        gated = fp.run(gated, None, f"set-gates{{where={path}}}", verify=False).program
    laps = Laps()
    result = laps("passes", fp.run, gated, None, f"delete-gated | {EXACT}", verify=False)
    small = result.program
    row |= {
        "blocks": len(find_blocks(program)),
        "deleted": third,
        "nodes": len(program.graph.nodes),
        "after": len(small.graph.nodes),
        "parameters": count(program.module),
        "left %": 100 * count(small.module) / max(count(program.module), 1),
        "rewrites": dict(Counter(r.code for r in result.select(kind="applied"))),
        "missed": dict(Counter(r.code for r in result.select(kind="missed"))),
        "seconds": laps["passes"],
    }
    codes = [
        r.code for r in result.select(kind="applied") if not r.code.startswith("delete-gated.")
    ]
    row["norms folded"] = codes.count("fold-batchnorm.folded")
    row["layers fused"] = sum(code.startswith("fuse-linear.") for code in codes)
    row["other rewrites"] = len(codes) - row["norms folded"] - row["layers fused"]
    for dtype in (torch.float64, torch.float32):
        check = compare_functions(gated, small, dtype=dtype)
        row[check.dtype] = check.max_relative_error
        if not check.ok:
            row.setdefault("why", str(check))
    for remark in result.select("delete-gated", "missed"):
        if remark.code.endswith("stuck"):
            row.setdefault("why", f"a gate at 0 stays: {remark.why}")


def render(rows: list[Row], wanted: int) -> str:
    """The block of the page."""
    return "\n".join((*totals(rows, wanted), "", tables(COLUMNS, rows)))


if __name__ == "__main__":
    Rows(
        RESULTS / "zoo_passes.jsonl",
        measure,
        ROOT / "docs" / "zoo-passes.md",
        "The networks",
        render,
    ).run()
