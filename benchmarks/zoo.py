"""The zoo: 30 % of each group of every network, at random, planned, shrunk and verified.

    python -m benchmarks.zoo [--only REGEX] [--timm] [--fresh] [--render]

One process per network; results are kept in `benchmarks/.results/` as they come, so a run that was
stopped goes on where it was. `docs/zoo.md` is renewed at the end, or by `--render` alone.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

import fxprune as fp
from benchmarks.networks import Network
from benchmarks.page import RESULTS, ROOT
from benchmarks.rows import Row, Rows, tables, totals
from benchmarks.stages import STAGES, Laps, count, decide
from fxprune.verify import batches_of, relative_error

CAPTURED = 1e-5  # in float32: the same operators, sometimes on other strides
INSIDE = 90  # % of a transformer's parameters outside its embeddings
COLUMNS = (
    *("network", "nodes", "parameters", "prunable %", "outside embeddings %", "removed %"),
    *("float64", "float32", "unknown operators", "capture s", "rest s", "verified"),
)


def measure(network: Network, row: Row) -> None:
    """Captures, prunes and verifies a network."""
    model, args, kwargs = network.build()
    laps = Laps()
    partial: Any = None
    if network.partial:
        partial = laps("capture", fp.capture_partial, model, args, kwargs)
        program = partial.program
        row["network"] = f"{network.name.split(':')[1]} ({len(partial.parts)} parts)"
    else:
        program = laps("capture", fp.capture, model, args, kwargs)
        row["captured"] = capture_error(model, program)
        if not row["captured"] <= CAPTURED:
            row["why"] = f"the captured program is off the model by {row['captured']:.1e}"
    axes, groups, plan = decide(program, laps)
    row["unknown"] = _unknown(axes.remarks)
    row["unknown operators"] = ", ".join(f"{k} x {n}" for k, n in row["unknown"].items()) or 0
    _measure_shares(network, model, program, axes, row)
    small = laps("shrink", fp.shrink, program, plan)
    row |= {
        "nodes": len(program.graph.nodes),
        "free batch": program.free_batch,
        "groups": len(groups),
        "units": len(plan.removed),
        "removed %": 100 * (1 - count(small.module) / row["parameters"]),
        "capture s": laps["capture"],
        "rest s": sum(laps[s] for s in STAGES),
    }
    for dtype in (torch.float64, torch.float32):
        check = fp.verify(program, plan, small, dtype=dtype)
        row[check.dtype] = check.max_relative_error
        if not check.ok:
            row.setdefault("why", str(check))
    if network.partial:
        whole = partial.verify(plan)
        row["float64"] = max(row["float64"], whole.max_relative_error)
        if not whole.ok:
            row.setdefault("why", f"the whole model: {whole}")


def capture_error(model: Any, program: fp.Program) -> float:
    """How far a captured program's outputs are from its model's, in float32, at each batch that verify tries."""
    errors = [0.0]
    with torch.no_grad():
        for args, kwargs, *_ in batches_of(program, 0):
            found = tree_leaves(program(*args, **kwargs)), tree_leaves(model(*args, **kwargs))
            pairs = zip(*found, strict=True)
            errors += [relative_error(a, b) for a, b in pairs if isinstance(b, torch.Tensor)]
    return max(errors)


def _unknown(remarks: Iterable[Any]) -> dict[str, int]:
    """Operators that were frozen for want of a rule, and how often."""
    places = [r.where for r in remarks if r.code == "solve.unknown-op"]
    return dict(Counter(re.sub(r".* = (\S+).*", r"\1", place, flags=re.S) for place in places))


def _measure_shares(network: Network, model: Any, program: Any, axes: Any, row: Row) -> None:
    """Parameters of the graph, and the shares of them that can lose a position."""
    parameters = dict(program.module.named_parameters(remove_duplicate=False))
    sizes, free = Counter[str](), Counter[str]()
    for name, labels in axes.params.items():
        if name not in parameters:
            continue
        apart = any(part in n for n in axes.names[name] for part in network.apart)
        shares = ["prunable %"] + ["outside embeddings %"] * bool(network.apart and not apart)
        sizes.update(dict.fromkeys(shares, parameters[name].numel()))
        if any((c != 0).any() for x in labels for c in x.columns):
            free.update(dict.fromkeys(shares, parameters[name].numel()))
    row["parameters"] = count(model)
    row["unused"] = row["parameters"] - sizes["prunable %"]
    row |= {share: 100 * free[share] / max(size, 1) for share, size in sizes.items()}
    wanted = {"prunable %": 100 * network.share, "outside embeddings %": INSIDE}
    row["short"] = any(row[share] < wanted[share] for share in sizes)


def render(rows: list[Row], wanted: int) -> str:
    """The block of the page."""
    good = [r for r in rows if r["verified"]]
    captured = [r["captured"] for r in good if "captured" in r]
    unknown = sum((Counter(r.get("unknown", {})) for r in rows), Counter[str]())
    named = ", ".join(f"`{k}` {n} times" for k, n in unknown.items())
    short = ", ".join(r["name"] for r in rows if r.get("short"))
    shares = [r["rest s"] / r["capture s"] for r in good] or [0.0]
    lines = [
        f"- Captured program compared with its model in float32: {len(captured)} networks, worst error",
        f"  {max(captured, default=0.0):.1e}.",
        f"- Operators without a rule: {named or 'none'}.",
        "- Networks below the wanted prunable share (99 % in classifiers, 97 % in ConvNeXt and Swin, 90 % of a",
        f"  transformer outside its embeddings): {short or 'none'}.",
        f"- Rest over capture: median {statistics.median(shares):.2f}, highest {max(shares):.2f}.",
    ]
    return "\n".join((*totals(rows, wanted), *lines, "", tables(COLUMNS, rows)))


if __name__ == "__main__":
    Rows(RESULTS / "zoo.jsonl", measure, ROOT / "docs" / "zoo.md", "The networks", render).run()
