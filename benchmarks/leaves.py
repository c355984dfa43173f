"""What gates and observers cost: the time of a step with them over that without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torchvision

import fxprune as fp
from benchmarks.bench import RATIO_HEAD, Row, alternate, markdown, ratio_cells
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline

THREADS = 2
ALONE = True
BATCH, ROUNDS = 8, 15
NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "ResNet-50": torchvision.models.resnet50,
    "ViT-B/16": torchvision.models.vit_b_16,
}
# What is put in, whether a step trains, and how much longer it may take.
INSERTED: dict[str, tuple[bool, float]] = {
    "insert-gates{scope=block}": (True, 1.03),
    "insert-gates{scope=unit}": (True, 1.10),
    "insert-observers{stat=on-fraction}": (False, 1.15),
}


def cases() -> list[str]:
    """One for each network and pass."""
    return [f"{network} {text}" for network in NETWORKS for text in INSERTED]


def measure(case: str) -> Row:
    """A network and the same with something put in, alternating."""
    network, text = case.split(" ", 1)
    train, limit = INSERTED[text]
    x = torch.randn(BATCH, 3, 224, 224)
    program = fp.capture(NETWORKS[network]().train(train), x)
    after = run_pipeline(program, text, verify=False).program
    steps = [lambda p=p: _step(p, x, train=train) for p in (program, after)]
    places = sum(1 for n in after.nodes if n.op == "call_module")
    return {"places": places, "limit": limit, **alternate(steps[0], steps[1], ROUNDS)}


def _step(program: Program, x: torch.Tensor, *, train: bool) -> None:
    """One forward, and one backward where it trains."""
    if train:
        program(x).square().mean().backward()
        program.module.zero_grad()
    else:
        with torch.no_grad():
            program(x)


def render(rows: Sequence[Row]) -> str:
    """The section of the page."""
    head = ["network and pass", "of a", "places", *RATIO_HEAD]
    lines = [
        [
            r["case"],
            "training step" if INSERTED[r["case"].split(" ", 1)[1]][0] else "forward",
            str(r["places"]),
            *ratio_cells(r),
        ]
        for r in rows
        if "failure" not in r
    ]
    return (
        "## Gates and observers\n\n"
        f"Wall time of a step with them over that without, batch {BATCH}, 224x224, {THREADS} threads, alternating in "
        f"one process, {ROUNDS} rounds.\n\n" + markdown(head, lines)
    )
