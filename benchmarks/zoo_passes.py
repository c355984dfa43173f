"""The zoo through the passes: a third of its blocks gated off, every exact rewrite, verified.

    python benchmarks/zoo_passes.py [--only REGEX] [--fresh] [--render]

Results are kept as in `benchmarks/zoo.py`; `docs/zoo-passes.md` is written at the end.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "zoo-passes.md"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.networks import Network  # noqa: E402
from benchmarks.rows import Page, Row, Rows, main  # noqa: E402
from benchmarks.zoo import Clock, measured_at, versions  # noqa: E402

ROWS = Rows(Path(__file__), "zoo_passes")
SHARE = 1 / 3
REWRITES = (
    "delete-gated | repeat{max=6}(drop-identity | merge-duplicates | fold-constants | "
    "fold-batchnorm | fuse-linear | dead-code)"
)


def measure(network: Network, seed: int = 0) -> Row:
    """The row of one network."""
    import torch

    from fxprune.capture import capture
    from fxprune.graph.gate import gates
    from fxprune.pipeline import run_pipeline
    from fxprune.structure.blocks import find_blocks
    from fxprune.verify import compare_functions, in_double, randomised

    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("ZOO_THREADS", "1")))
    model, args, kwargs = network.build()
    row: Row = {"name": network.name, "kind": network.kind}
    clock = Clock()
    program: Any
    if network.partial:
        from fxprune.partial import capture_partial

        program = clock("capture", lambda: capture_partial(model, args, kwargs)).program
    else:
        program = clock("capture", lambda: capture(model, args, kwargs))
    program = in_double(randomised(program, seed))
    blocks = clock("blocks", lambda: find_blocks(program))
    gated = run_pipeline(program, "insert-gates", verify=False).program
    closed = _choose(list(gates(gated)), seed)
    for path in closed:
        gated = run_pipeline(gated, f"set-gates{{where={path}}}", verify=False).program
    result = clock("passes", lambda: run_pipeline(gated, REWRITES, verify=False))
    small = result.program
    row |= {
        "blocks": len(blocks),
        "closed": len(closed),
        "nodes": len(program.graph.nodes),
        "nodes_after": len(small.graph.nodes),
        "parameters": _parameters(program),
        "parameters_after": _parameters(small),
        "rewrites": dict(Counter(r.code for r in result.select(kind="applied"))),
        "missed": dict(Counter(r.code for r in result.select(kind="missed"))),
        "seconds": clock.seconds,
    }
    for dtype in (torch.float64, torch.float32):
        check = compare_functions(gated, small, dtype=dtype)
        row[check.dtype] = check.max_relative_error
        if not check.ok:
            row.setdefault("why", str(check))
    stuck = [r for r in result.select("delete-gated", "missed") if r.code.endswith("stuck")]
    if stuck:
        row.setdefault("why", f"a gate at 0 stays: {stuck[0].why}")
    row["ok"] = "why" not in row
    return row


def _choose(paths: list[str], seed: int) -> list[str]:
    import numpy as np

    count = max(1, round(SHARE * len(paths))) if paths else 0
    return sorted(np.random.default_rng(seed).choice(paths, count, replace=False)) if count else []


def _parameters(program: Any) -> int:
    return sum({id(t): t.numel() for t in program.module.parameters()}.values())


COLUMNS = (
    "network",
    "blocks",
    "deleted",
    "nodes",
    "after",
    "parameters",
    "left",
    "norms folded",
    "layers fused",
    "other rewrites",
    "float64",
    "float32",
    "seconds",
    "verified",
)


def render(rows: Mapping[str, Row], order: list[Network]) -> str:
    """The page, as Markdown."""
    known = [rows[n.name] for n in order if n.name in rows]
    good = [r for r in known if r.get("ok")]
    lines = [
        _HEAD.format(versions=versions(), measured=measured_at(known)),
        f"- {len(good)} of {len(order)} networks verified, {len(order) - len(known)} not run.",
        *(
            f"- Worst error in {d}: {max((r[d] for r in good), default=0):.1e}."
            for d in ("float64", "float32")
        ),
        "",
    ]
    for kind in dict.fromkeys(r["kind"] for r in known):
        lines += [f"## {kind.replace('_', ' ').capitalize()}", ""]
        lines.append("| " + " | ".join(COLUMNS) + " |")
        lines.append("| " + " | ".join("---" if c == "network" else "---:" for c in COLUMNS) + " |")
        lines += ["| " + " | ".join(_cells(r)) + " |" for r in known if r["kind"] == kind]
        lines.append("")
    bad = [r for r in known if not r.get("ok")]
    if bad:
        lines += ["## Not verified", ""]
        lines += [f"- `{r['name']}`: {str(r.get('why')).splitlines()[0][:300]}" for r in bad]
        lines.append("")
    return "\n".join(lines)


_HEAD = """# The zoo through the passes

Made by `make zoo-passes`, that is `python benchmarks/zoo_passes.py`. {versions}

Of every network a third of the residual blocks (at least one, at random) are gated to 0. Then
`delete-gated` and every exact rewrite run to a fixpoint, and the result is held against the gated original
in float64 and float32, at a second batch size too where the batch is free. Weights are random, in float64
before the passes, and tensors of one repeated value are given noise. Of detectors, which cannot be exported
whole, the parts that can are rewritten. *Seconds* are CPU time of one thread for the passes alone.

{measured}
"""


def _cells(row: Row) -> list[str]:
    done: Mapping[str, int] = row.get("rewrites", {})
    norms = done.get("fold-batchnorm.folded", 0)
    fused = sum(n for code, n in done.items() if code.startswith("fuse-linear."))
    gated = sum(n for code, n in done.items() if code.startswith("delete-gated."))
    share = row["parameters_after"] / max(row["parameters"], 1) if "parameters" in row else None
    return [
        row["name"].split(":")[1],
        str(row.get("blocks", "")),
        str(row.get("closed", "")),
        str(row.get("nodes", "")),
        str(row.get("nodes_after", "")),
        f"{row['parameters']:,}" if "parameters" in row else "",
        "" if share is None else f"{100 * share:.1f} %",
        str(norms),
        str(fused),
        str(sum(done.values()) - norms - fused - gated),
        *(f"{row[d]:.0e}" if d in row else "" for d in ("float64", "float32")),
        f"{row['seconds']['passes']:.2f}" if "passes" in row.get("seconds", {}) else "",
        "yes" if row.get("ok") else "**no**",
    ]


if __name__ == "__main__":
    main(ROWS, Page(PAGE, render), measure, __doc__)
