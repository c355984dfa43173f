"""How the solving time grows with the depth of a network."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.bench import Row, markdown, verdict

THREADS = 1
ALONE = False
LIMIT = 1.15
REPEATS = 7
DEPTHS = {"residual": (10, 20, 40, 80, 160, 320), "transformer": (4, 8, 16, 32, 64)}


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def build(kind: str, blocks: int) -> tuple[nn.Module, torch.Tensor]:
    """A network of that many blocks, and an input."""
    if kind == "residual":
        body: list[nn.Module] = [Residual(16) for _ in range(blocks)]
        ends = nn.Conv2d(3, 16, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head = nn.Linear(16, 10)
        return nn.Sequential(ends[0], *body, ends[1], head).eval(), torch.randn(2, 3, 8, 8)
    layers = [
        nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(blocks)
    ]
    model = nn.Sequential(nn.Linear(8, 32), *layers, nn.Linear(32, 8)).eval()
    return model, torch.randn(2, 6, 8)


def cases() -> list[str]:
    """One for each kind and depth."""
    return [f"{kind} {blocks}" for kind, depths in DEPTHS.items() for blocks in depths]


def measure(case: str) -> Row:
    """The shortest of several solutions of one program."""
    from fxprune.analysis.solve import solve
    from fxprune.capture import capture

    kind, blocks = case.split()
    model, x = build(kind, int(blocks))
    program = capture(model, (x,))
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        solve(program)
        seconds.append(time.process_time() - start)
    return {"nodes": len(program.graph.nodes), "solve": min(seconds)}


def exponent(blocks: Sequence[int], seconds: Sequence[float]) -> float:
    """The power of the depth that the time grows with: slope of a line through the logarithms."""
    return float(np.polyfit(np.log(blocks), np.log(seconds), 1)[0])


def render(rows: Sequence[Row]) -> str:
    """The section of the page."""
    good = [r for r in rows if "solve" in r]
    lines = [
        "## Solving over depth\n",
        f"The shortest of {REPEATS} solutions; the exponent is the slope of a line through the",
        f"logarithms. Wanted: at most {LIMIT}.\n",
    ]
    for kind in DEPTHS:
        points = [(int(r["case"].split()[1]), r["solve"]) for r in good if kind in r["case"]]
        if len(points) > 1:
            slope = exponent(*zip(*points, strict=True))
            lines.append(f"- {kind} blocks: exponent {slope:.2f}, {verdict(slope <= LIMIT)}.")
    body = [(*r["case"].split(), str(r["nodes"]), f"{r['solve']:.4f}", _per_node(r)) for r in good]
    head = ("kind", "blocks", "nodes", "solve s", "µs per node")
    return "\n".join(lines) + "\n\n" + markdown(head, body)


def _per_node(row: Row) -> str:
    return f"{1e6 * row['solve'] / row['nodes']:.0f}"
