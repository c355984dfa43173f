"""What solve + groups + plan + shrink cost beside capture, for the zoo."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from benchmarks.bench import Clock, Row, markdown, verdict
from benchmarks.networks import Example, Network, networks
from benchmarks.zoo import draw

THREADS = 1
ALONE = False
LIMIT = 0.2
STAGES = ("solve", "groups", "plan", "shrink")


@cache
def compared() -> Mapping[str, Network]:
    """The zoo's classifiers and transformers by name."""
    kinds = ("classification", "transformers")
    return {n.name: n for n in networks() if n.kind in kinds}


def cases() -> list[str]:
    """One for each network."""
    return list(compared())


@cache
def warm_up() -> None:
    """One small network through every stage: imports and first calls are not the network's."""
    import torch
    from torch import nn
    from torch.testing import make_tensor

    x = make_tensor(2, 3, 8, 8, device="cpu", dtype=torch.float32)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    prune(Clock(), (model.eval(), (x,), {}))


def prune(clock: Clock, example: Example, seed: int = 0) -> dict[str, Any]:
    """From a model to the smaller program, 30 % of each group at random; every stage timed."""
    from fxprune.analysis.group import find_groups
    from fxprune.analysis.solve import solve
    from fxprune.capture import capture
    from fxprune.plan import plan_removal
    from fxprune.shrink import apply_plan

    model, args, kwargs = example
    program = clock("capture", lambda: capture(model, args, kwargs))
    axes = clock("solve", lambda: solve(program))
    groups = clock("groups", lambda: find_groups(axes))
    plan = clock("plan", lambda: plan_removal(program, axes, draw(groups, seed)))
    small = clock("shrink", lambda: apply_plan(program, axes, plan))
    return {"program": program, "axes": axes, "plan": plan, "small": small}


def measure(case: str) -> Row:
    """Seconds by stage."""
    warm_up()
    clock = Clock()
    example = compared()[case].build()
    made = prune(clock, example)
    clock("export", lambda: export(example))
    return {"seconds": clock.seconds, "nodes": len(made["program"].graph.nodes)}


def export(example: Example) -> None:
    """What capture took, and most tools take: torch.export with a free batch."""
    import torch
    from torch.utils import _pytree as pytree

    model, args, kwargs = example
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for x in pytree.tree_leaves((args, kwargs)):
        if isinstance(x, torch.Tensor) and x.ndim:
            shapes[x] = {0: torch.export.Dim.AUTO}
    torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def share_of(row: Row, of: str) -> float:
    """Seconds of the stages after capture over those of capture or of an export."""
    seconds: dict[str, float] = row["seconds"]
    return sum(seconds[s] for s in STAGES) / seconds[of]


def render(rows: Sequence[Row]) -> str:
    """The section of the page."""
    good = [r for r in rows if "seconds" in r]
    lines = [
        "## After capture: solve + groups + plan + shrink\n",
        f"{len(good)} models, 30 % of each group at random; CPU seconds of one run. *Export* is `torch.export` of the",
        "same model with a free batch, behind all else. Capture was such an export, and then some, when the limit was",
        f"set; now it exports only what cannot be recorded. Wanted: at most {LIMIT} of capture for each model.\n",
        _summary(good, "capture"),
        _summary(good, "export") + "\n",
    ]
    body = [
        (
            r["case"],
            str(r["nodes"]),
            *(f"{r['seconds'][s]:.3f}" for s in ("export", "capture", *STAGES)),
            f"{share_of(r, 'capture'):.3f}",
            f"{share_of(r, 'export'):.3f}",
        )
        for r in good
    ]
    head = (
        *("network", "nodes", "export s", "capture s"),
        *(f"{s} s" for s in STAGES),
        *("of capture", "of export"),
    )
    return "\n".join(lines) + "\n" + markdown(head, body)


def _summary(rows: Sequence[Row], of: str) -> str:
    shares = [share_of(r, of) for r in rows]
    over = sum(s > LIMIT for s in shares)
    return (
        f"- Of {of}: median {statistics.median(shares):.3f}, highest {max(shares):.3f}, "
        f"{over} above {LIMIT}: {verdict(not over)}."
    )
