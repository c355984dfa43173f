"""The methods on networks of the papers' size, for a few steps on random images of 224x224.

It shows that everything fits together at that size, and nothing about accuracy. So few steps close no gate:
some are closed by hand before the end of the epoch. python experiments/wiring.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models

import fxprune as fp
from benchmarks.commit import commit
from benchmarks.page import renew
from experiments.page import FILE
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.training import Shrinker
from fxprune.training.history import size_of
from fxprune_passes.methods import BernoulliLayers, ComplexityAware, EntropyGuided
from fxprune_passes.methods.method import Method

IMAGENET = 1_281_167


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        network: with random weights.
        method: over it.
        said: the method, in words.
        prepare: pipeline before.
    """

    network: Callable[[], nn.Module]
    method: Callable[[Shrinker], Method]
    said: str
    prepare: str = ""


CASES: dict[str, Case] = {
    "ResNet-50": Case(
        models.resnet50,
        lambda s: ComplexityAware.preset("imagenet-resnet50", s),
        "ComplexityAware, preset imagenet-resnet50",
    ),
    "Swin-T": Case(
        models.swin_t, lambda s: EntropyGuided(s, 0.25, most=0.9), "EntropyGuided, zeta 0.25"
    ),
    "MobileNetV2": Case(
        models.mobilenet_v2, lambda s: EntropyGuided(s, 0.1, most=0.9), "EntropyGuided, zeta 0.1"
    ),
    "VGG-16": Case(
        models.vgg16,
        lambda s: BernoulliLayers(s, IMAGENET, -3000.0, estimator="first-order"),
        "insert-skips, BernoulliLayers",
        "insert-skips",
    ),
}


def main() -> None:
    """Runs every case and renews the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--only", default="", help="networks whose name holds this")
    options = parser.parse_args()
    lines = []
    for name, case in CASES.items():
        if options.only in name:
            lines.append([name, *_run(case, options.steps, options.batch)])
            print(*lines[-1], sep=" | ", flush=True)
    if not options.only:
        renew(FILE, {"Wiring at the papers' scale": _table(lines, options.steps, options.batch)})


def _run(case: Case, steps: int, batch: int) -> list[str]:
    torch.manual_seed(0)
    images, classes = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    start = fp.capture(case.network().train(), images)
    if case.prepare:
        start = run_pipeline(start, case.prepare).program
    optimizer = torch.optim.SGD(start.module.parameters(), 1e-4, momentum=0.9)
    shrinker = Shrinker(start, optimizer)
    method = case.method(shrinker)

    def loss(module: nn.Module) -> torch.Tensor:
        return cross_entropy(module(images), classes)

    losses = [float(method.step(loss)) for _ in range(steps)]
    closed = close_some(shrinker.program)
    began = time.perf_counter()
    method.end_epoch()
    seconds = time.perf_counter() - began
    losses += [float(method.step(loss)) for _ in range(steps)]
    before, after = size_of(start), size_of(shrinker.program)
    numbers = ", ".join(f"{k} {v:.3g}" for k, v in method.numbers().items())
    return [
        case.said,
        closed,
        f"{before.parameters:,} -> {after.parameters:,}",
        f"{before.layers} -> {after.layers}",
        f"{losses[0]:.2f}, {losses[-1]:.2f}",
        f"{seconds:.0f}",
        numbers,
    ]


@torch.no_grad()
def close_some(program: Program) -> str:
    """Every third gate on a branch, a third of the units of each other one."""
    branches = units = 0
    found = gates(program).values()
    for gate in [g for g in found if not g.theta.dim()][::3]:
        gate.set(0.0)
        branches += 1
    for gate in (g for g in found if g.theta.dim()):
        gate.theta[::3] = 0
        units += len(gate.theta[::3])
    return f"{branches} branches, {units} units" if branches or units else ""


def _table(lines: list[list[str]], steps: int, batch: int) -> str:
    head = ("", "method", "closed by hand", "parameters", "layers", "loss", "removal, s", "")
    shown = tabulate(lines, head, tablefmt="github", disable_numparse=True)
    how = (
        f"{steps} steps on {batch} random images of 224x224, the end of an epoch with its verified "
        f"removals, {steps} steps more. Losses are of the first and the last step."
    )
    made = f"`python experiments/wiring.py`, torch {torch.__version__}, cpu, commit {commit()}."
    return "\n\n".join([how, made, shown])


if __name__ == "__main__":
    main()
