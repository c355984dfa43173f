"""The zoo: 30 % of each group of every network, at random, planned, shrunk and verified.

    python benchmarks/zoo.py [--only REGEX] [--timm] [--fresh] [--render]

One process per network; results are kept in `benchmarks/.results/` as they come, so a run that was
stopped goes on where it was. `docs/zoo.md` is written at the end, or by `--render` alone.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial as partial_call
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "zoo.md"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.networks import Network  # noqa: E402
from benchmarks.rows import Page, Row, Rows, main  # noqa: E402

SHARE = 0.3
CAPTURED = 1e-5  # in float32: the same operators, sometimes on other strides
ROWS = Rows(Path(__file__), "zoo")


# One network, in a process of its own


class Clock:
    """CPU seconds of this process, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        try:
            return work()
        finally:
            self.seconds[name] = round(time.process_time() - start, 3)


def measure(network: Network, seed: int = 0) -> Row:
    """The row of one network."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("ZOO_THREADS", "1")))
    model, args, kwargs = network.build()
    row: Row = {"name": network.name, "kind": network.kind, "share_wanted": network.share}
    clock = Clock()
    try:
        _measure_program(network, model, args, kwargs, seed, row, clock)
    finally:
        row["seconds"] = clock.seconds
    return row


def _measure_program(
    network: Network, model: Any, args: Any, kwargs: Any, seed: int, row: Row, clock: Clock
) -> None:
    import torch

    from fxprune.analysis.group import find_groups
    from fxprune.analysis.solve import solve
    from fxprune.capture import capture
    from fxprune.plan import plan_removal
    from fxprune.shrink import apply_plan
    from fxprune.verify import compare_programs

    if network.partial:
        from fxprune.partial import capture_partial

        partial = clock("capture", lambda: capture_partial(model, args, kwargs))
        program = partial.program
        row["parts"] = len(partial.parts)
    else:
        program = clock("capture", lambda: capture(model, args, kwargs))
        row["captured"] = capture_error(model, program)
        if not row["captured"] <= CAPTURED:
            row["why"] = f"the captured program is off the model by {row['captured']:.1e}"
    row["nodes"] = len(program.graph.nodes)
    row["free_batch"] = program.free_batch
    axes = clock("solve", lambda: solve(program))
    row["unknown"] = _unknown(axes.remarks)
    _count(network, model, program, axes, row)
    groups = clock("groups", lambda: find_groups(axes))
    units = draw(groups, seed)
    row["groups"], row["units"] = len(groups), len(units)
    plan = clock("plan", lambda: plan_removal(program, axes, units))
    small = clock("shrink", lambda: apply_plan(program, axes, plan))
    left = sum({id(t): t.numel() for t in small.module.parameters()}.values())
    row["removed"] = 1 - left / row["parameters"]
    for dtype in (torch.float64, torch.float32):
        verify = partial_call(compare_programs, program, axes, plan, small, dtype=dtype)
        check = clock(f"verify {dtype}", verify)
        row[check.dtype] = check.max_relative_error
        if not check.ok:
            row.setdefault("why", str(check))
    if network.partial:
        whole = clock("verify whole", lambda: partial.verify(plan))
        row["whole"] = whole.max_relative_error
        if not whole.ok:
            row.setdefault("why", f"the whole model: {whole}")
    row["ok"] = "why" not in row


def capture_error(model: Any, program: Any, seed: int = 0) -> float:
    """How far the outputs of a captured program are from its model's, in float32, at each batch that verify tries."""
    import torch
    from torch.utils._pytree import tree_leaves

    from fxprune.verify import batches_of, relative_error

    errors = [0.0]
    with torch.no_grad():
        for args, kwargs, _ in batches_of(program, seed):
            pairs = zip(
                tree_leaves(program(*args, **kwargs)),
                tree_leaves(model(*args, **kwargs)),
                strict=True,
            )
            errors += [relative_error(a, b) for a, b in pairs if isinstance(b, torch.Tensor)]
    return max(errors)


def draw(groups: Iterable[Any], seed: int, share: float = SHARE) -> Any:
    """That share of every group, at random: at least one unit goes and one stays."""
    import numpy as np

    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(g.units, min(max(1, int(share * len(g))), len(g) - 1), replace=False)
        for g in groups
    ]
    return np.concatenate([np.zeros(0, np.int64), *chosen])


def _unknown(remarks: Iterable[Any]) -> dict[str, int]:
    """Operators that were frozen for want of a rule, and how often."""
    places = [r.where for r in remarks if r.code == "solve.unknown-op"]
    return dict(Counter(re.sub(r".* = (\S+).*", r"\1", place, flags=re.S) for place in places))


def _count(network: Network, model: Any, program: Any, axes: Any, row: Row) -> None:
    """Parameters of the graph, and the shares of them that can lose a position."""
    parameters = dict(program.module.named_parameters(remove_duplicate=False))
    total = free = others = free_others = 0
    for name, labels in axes.params.items():
        if name not in parameters:
            continue
        size = parameters[name].numel()
        prunable = size * any((c != 0).any() for x in labels for c in x.columns)
        total, free = total + size, free + prunable
        if not any(part in n for n in axes.names[name] for part in network.apart):
            others, free_others = others + size, free_others + prunable
    row["parameters"] = sum({id(p): p.numel() for p in model.parameters()}.values())
    row["unused"] = row["parameters"] - total
    row["prunable"] = free / max(total, 1)
    if network.apart:
        row["prunable_inner"] = free_others / max(others, 1)


# The page

COLUMNS = (
    "network",
    "nodes",
    "parameters",
    "prunable",
    "outside embeddings",
    "removed",
    "float64",
    "float32",
    "unknown operators",
    "capture s",
    "rest s",
    "verified",
)


def render(rows: Mapping[str, Row], order: list[Network]) -> str:
    """The page, as Markdown."""
    known = [rows[n.name] for n in order if n.name in rows]
    totals = _totals(known, len(order))
    parts = [_HEAD.format(versions=versions(), measured=measured_at(known), totals=totals)]
    for kind in dict.fromkeys(r["kind"] for r in known):
        here = [r for r in known if r["kind"] == kind]
        columns = [c for c in COLUMNS if c != "outside embeddings" or kind == "transformers"]
        parts.append(f"## {kind.replace('_', ' ').capitalize()}\n")
        parts.append("| " + " | ".join(columns) + " |")
        parts.append(
            "| " + " | ".join("---" if c in COLUMNS[:1] else "---:" for c in columns) + " |"
        )
        parts += ["| " + " | ".join(_cells(r)[c] for c in columns) + " |" for r in here]
        parts.append("")
    failed = [r for r in known if not r.get("ok")]
    if failed:
        parts.append("## Not verified\n")
        parts += [f"- `{r['name']}`: {str(r.get('why')).splitlines()[0][:300]}" for r in failed]
        parts.append("")
    return "\n".join(parts)


_HEAD = """# The zoo

Made by `make zoo`, that is `python benchmarks/zoo.py`. {versions}

Of every group of every network 30 % of the units (at least one, never all), drawn at random, are
removed; the smaller program is held against the silenced original in float64 and in float32, at a
second batch size too where the batch is free. The captured program is held against its model first, at the
same batches. Tensors of one repeated value (norms, layer scales,
heads of zeros) are given noise for that. Weights are random. *Prunable* is the share of the
parameters used by the graph that have an axis which can lose a position; *removed*, what went of
all parameters; *rest*, solve + groups + plan + shrink. Seconds are CPU time of one thread.

As torchvision and transformers build them, except: images are small (a network's labels do not
depend on their size), GoogLeNet and Inception lack the second head that only training runs, RAFT
makes 3 of its 12 refinements, transformers have two layers. Detectors cannot be exported whole: their
largest submodules that can are pruned (`fxprune.partial`), what lies between them is not, and the
whole detector is compared in float64, boxes, scores and labels, with a score threshold of 0 and few
proposals; SSDlite's heads are given weights of the usual size, since its own make all scores tie.

{measured}

{totals}
"""


def _cells(row: Row) -> dict[str, str]:
    seconds = row.get("seconds", {})
    rest = [seconds[k] for k in ("solve", "groups", "plan", "shrink") if k in seconds]
    name = row["name"].split(":")[1]
    unknown = ", ".join(f"{k} x {n}" for k, n in row.get("unknown", {}).items())
    return {
        "network": name + (f" ({row['parts']} parts)" if "parts" in row else ""),
        "nodes": str(row.get("nodes", "")),
        "parameters": f"{row['parameters']:,}" if "parameters" in row else "",
        "prunable": _percent(row.get("prunable")),
        "outside embeddings": _percent(row.get("prunable_inner")),
        "removed": _percent(row.get("removed")),
        "float64": _error(max_error(row, "float64")),
        "float32": _error(max_error(row, "float32")),
        "unknown operators": unknown or "0",
        "capture s": f"{seconds['capture']:.2f}" if "capture" in seconds else "",
        "rest s": f"{sum(rest):.2f}" if rest else "",
        "verified": "yes" if row.get("ok") else "**no**",
    }


def max_error(row: Row, dtype: str) -> float | None:
    """The worst error of a row; of the parts and of the whole, for a network captured in parts."""
    found = [row[k] for k in (dtype, "whole" if dtype == "float64" else dtype) if k in row]
    return max(found, default=None)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.0e}"


def _totals(rows: list[Row], wanted: int) -> str:
    good = [r for r in rows if r.get("ok")]
    lines = [f"- {len(good)} of {wanted} networks verified, {wanted - len(rows)} not run."]
    for dtype in ("float64", "float32"):
        errors = [e for r in good if (e := max_error(r, dtype)) is not None]
        if errors:
            lines.append(f"- Worst error in {dtype}: {max(errors):.1e}.")
    if captured := [r["captured"] for r in good if "captured" in r]:
        lines.append(
            f"- Captured program against its model, float32, {len(captured)} networks: "
            f"worst error {max(captured):.1e}."
        )
    unknown = sum((Counter(r.get("unknown", {})) for r in rows), Counter[str]())
    named = ", ".join(f"`{k}` {n} times" for k, n in unknown.items())
    lines.append(f"- Operators without a rule: {named or 'none'}.")
    lines.append(_low_shares(rows))
    ratios = [_ratio(r) for r in good if "capture" in r.get("seconds", {})]
    if ratios:
        median, worst = statistics.median(ratios), max(ratios)
        lines.append(f"- Rest over capture: median {median:.2f}, highest {worst:.2f}.")
    return "\n".join(lines)


def _ratio(row: Row) -> float:
    seconds: dict[str, float] = row["seconds"]
    return sum(seconds[k] for k in ("solve", "groups", "plan", "shrink")) / seconds["capture"]


def _low_shares(rows: list[Row]) -> str:
    short = [
        r
        for r in rows
        if r.get("prunable", 1.0) < r.get("share_wanted", 0) or r.get("prunable_inner", 1.0) < 0.9
    ]
    names = ", ".join(r["name"] for r in short)
    wanted = "99 % in classifiers, 97 % in ConvNeXt and Swin, 90 % of a transformer's inside"
    return f"- Below the share wanted ({wanted}): {names or 'none'}."


def versions() -> str:
    """What the numbers were measured with."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "transformers", "timm")
    found = ", ".join(f"{n} {version(n)}" for n in names)
    return f"Python {platform.python_version()}, {found}."


def measured_at(rows: list[Row]) -> str:
    """Which versions of fxprune the rows come from."""
    commits = sorted({str(r.get("commit") or "an unrecorded one") for r in rows})
    if len(commits) == 1:
        return f"All rows were measured at {commits[0]}."
    return (
        f"The rows were measured while the library was being built, at {len(commits)} of its commits "
        f"({', '.join(commits)}), on a machine that did other work, most of them in one process one after "
        "the other; `--fresh` measures all of them again."
    )


if __name__ == "__main__":
    main(ROWS, Page(PAGE, render), measure, __doc__, lambda row: not row["unknown"])
