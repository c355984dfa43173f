"""`docs/quality.md`, from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

import torch

from benchmarks.page import ROOT, made_with, renew
from benchmarks.quality import layers, units
from benchmarks.quality.networks import NETWORKS
from benchmarks.quality.rows import COLUMNS, Row
from fxprune.importance import default_criterion

PAGE = ROOT / "docs" / "quality.md"


def write(rows: Sequence[Row]) -> None:
    """Renews the tables of the page; its text stays."""
    chosen = [default_criterion(x) for x in (None, [torch.zeros(1)])]
    said = f"Default without data: `{chosen[0]}`; with data: `{chosen[1]}`.\n"
    commits = made_with(r["commit"] for r in rows)
    parts = {"units": units.SHARES, "layers": layers.SHARES}
    blocks = {
        name: "\n".join(_table(rows, name, network, shares) for network in NETWORKS)
        for name, shares in parts.items()
    }
    found = {"The measurements": f"{said}\n{blocks['units'].strip()}\n\n{commits}"}
    if layered := blocks["layers"].strip():
        found["Layers"] = f"{layered}\n\n{commits}"
    renew(PAGE, found)


def _table(rows: Iterable[Row], table: str, network: str, shares: Sequence[float]) -> str:
    """One network: criteria by shares."""
    own = [r for r in rows if (r["table"], r["network"]) == (table, network)]
    dense = [r for r in rows if (r["network"], r["how"]) == (network, "dense")]
    if not own or not dense:
        return ""
    verb = "stay" if table == "units" else "go"
    columns = [c for c in COLUMNS if any(r["column"] == c for r in own)]
    heads = [f"{k:g} {verb}{COLUMNS[c]}" for k in shares for c in columns]
    lines = [
        f"### {network}\n",
        f"{dense[0]['measure']}; dense: {dense[0]['quality']:.3f}.\n",
        f"| criterion | {' | '.join(heads)} |",
        f"| --- | {' | '.join('---:' for _ in heads)} |",
    ]
    order = {how: i for i, how in enumerate((*units.CRITERIA, *layers.SCORES))}
    hows = dict.fromkeys(r["how"] for r in own if r["how"] != "dense")
    for how in sorted(hows, key=lambda x: order.get(x, len(order))):
        cells = [_cell(own, how, k, c) for k in shares for c in columns]
        if any(cells):
            lines.append(f"| {how} | {' | '.join(cells)} |")
    failed = {r["how"]: r["why"] for r in own if r["column"] == "failed"}
    lines += ["", *(f"- {how}: {why[:200]}" for how, why in failed.items())]
    return "\n".join(lines).rstrip() + "\n"


def _cell(rows: Iterable[Row], how: str, amount: float, column: str) -> str:
    wanted = (how, amount, column)
    found = [r["quality"] for r in rows if (r["how"], r["amount"], r["column"]) == wanted]
    if not found:
        return ""
    spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
    return f"{mean(found):.3f}{spread}"
