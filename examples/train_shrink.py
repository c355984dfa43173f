"""A plain PyTorch loop, and three lines that let the network shrink while it trains.

Random images, so that it runs in seconds: python examples/train_shrink.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp


def make_model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def weakest(program: fp.Program, share: float) -> fp.Plan:
    """The channels of each convolution with the smallest weights."""
    cut = {}
    for name, weight in program.module.named_parameters():
        if weight.dim() == 4:
            order = weight.detach().flatten(1).norm(dim=1).argsort()
            cut[name] = (0, order[: int(share * len(order))].tolist())
    return fp.plan(program, cut)


def main(folder: Path | None = None, epochs: int = 4, steps: int = 5) -> fp.training.History:
    torch.manual_seed(0)
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    batches = [(torch.randn(32, 3, 16, 16), torch.randint(10, (32,))) for _ in range(steps)]
    history = fp.training.History(folder and folder / "history.jsonl")

    shrinker = fp.training.Shrinker(model, optimizer, args=batches[0][0])  # 1
    for epoch in range(epochs):
        model = shrinker.module  # 2: after each shrinking it is another module
        for x, y in batches:
            optimizer.zero_grad()
            scores = model(x)
            loss = cross_entropy(scores, y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            correct = (scores.argmax(1) == y).sum()
            history.step(loss.detach(), correct=correct, samples=len(y))
        history.end_epoch(shrinker.program)
        if epoch in (0, 1):
            print(shrinker.apply(weakest(shrinker.program, 0.25)))  # 3

    print(history)
    return history


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
