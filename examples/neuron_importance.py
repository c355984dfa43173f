"""A classifier loses two thirds of its hidden units while it trains: those that add least to the next layer.

Random digits, so that it runs in seconds: python examples/neuron_importance.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune_passes.methods import NeuronImportance

Batch = tuple[torch.Tensor, torch.Tensor]


def make_batches(count: int) -> list[Batch]:
    """Noisy copies of ten random patterns."""
    rng = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 784, generator=rng)
    classes = [torch.randint(10, (64,), generator=rng) for _ in range(count)]
    return [(patterns[y] + 3 * torch.randn(64, 784, generator=rng), y) for y in classes]


def main(folder: Path | None = None, epochs: int = 8, steps: int = 20) -> fp.training.History:
    torch.manual_seed(0)
    layers = [nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = make_batches(steps)
    history = fp.training.History(folder and folder / "history.jsonl")

    shrinker = fp.training.Shrinker(model, optimizer, args=batches[0][0])
    method = NeuronImportance(shrinker, share=0.2, target=0.68, observe_every=4)
    for _ in range(epochs):
        for x, y in batches:
            loss = method.step(lambda module, x=x, y=y: cross_entropy(module(x), y))  # type: ignore[misc]
            history.step(loss, samples=len(y))
        history.end_epoch(shrinker.program, **method.numbers())
        for change in method.end_epoch():
            print(change)

    print(history)
    return history


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
