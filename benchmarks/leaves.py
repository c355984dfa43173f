"""What gates and observers cost: the time of a step with them over that without.

    python benchmarks/leaves.py [--rounds N] [--batch N] [--networks NAME ...] [--device DEVICE]

Prints a table in Markdown. The two networks of a ratio take turns, step by step, so that what else the
machine does falls on both; a ratio is the median over the rounds of the ratio of neighbours.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from tabulate import tabulate

sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent),
]

import fxprune as fp  # noqa: E402
from fxprune.pipeline import run_pipeline  # noqa: E402
from fxprune.program import Program  # noqa: E402

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "ResNet-50": torchvision.models.resnet50,
    "ViT-B/16": torchvision.models.vit_b_16,
}
# What is put in, whether a step trains, and how much longer it may take.
CASES = (
    ("insert-gates{scope=block}", True, 1.03),
    ("insert-gates{scope=unit}", True, 1.10),
    ("insert-observers{stat=on-fraction}", False, 1.15),
)


def step(program: Program, x: torch.Tensor, *, train: bool) -> None:
    """One forward, and one backward where it trains."""
    if train:
        program(x).square().mean().backward()
        for parameter in program.module.parameters():
            parameter.grad = None
    else:
        with torch.no_grad():
            program(x)
    if x.is_cuda:
        torch.cuda.synchronize()


def ratios(
    before: Program, after: Program, x: torch.Tensor, *, train: bool, rounds: int
) -> Iterator[float]:
    """The ratio of each round, the first of which is thrown away."""
    for i in range(rounds + 1):
        pair = (before, after) if i % 2 else (after, before)
        seconds = {}
        for program in pair:
            start = time.perf_counter()
            step(program, x, train=train)
            seconds[program] = time.perf_counter() - start
        if i:
            yield seconds[after] / seconds[before]


def rows(names: list[str], batch: int, rounds: int, device: str) -> Iterator[list[str]]:
    """A row for each network and case."""
    for name in names:
        torch.manual_seed(0)
        x = torch.randn(batch, 3, 224, 224, device=device)
        model = NETWORKS[name]().to(device)
        for text, train, bound in CASES:
            program = fp.capture(model.train(train), x)
            after = run_pipeline(program, text, verify=False).program
            found = sorted(ratios(program, after, x, train=train, rounds=rounds))
            places = sum(1 for n in after.nodes if n.op == "call_module")
            low, high = found[len(found) // 4], found[-1 - len(found) // 4]
            yield [
                name,
                f"`{text}`",
                "training step" if train else "forward",
                str(places),
                f"{statistics.median(found):.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{bound:.2f}",
            ]
            print(f"{name} {text}: {statistics.median(found):.3f}", file=sys.stderr, flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    found = list(rows(given.networks, given.batch, given.rounds, given.device))
    header = ["network", "with", "of a", "places", "ratio", "middle half", "at most"]
    where = (
        torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.processor()
    )
    print(
        f"Batch {given.batch}, 224x224, {where or platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {given.rounds} rounds.\n"
    )
    print(tabulate(found, header, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
