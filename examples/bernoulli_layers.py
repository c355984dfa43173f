"""Layers that a network does not need leave it while it trains: Bernoulli gates (arXiv 2406.04549).

Made images, so that it runs in seconds: python examples/bernoulli_layers.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune_passes.methods import BernoulliLayers


class Block(nn.Module):
    """x + F(x): what a gate can be put on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.branch(x))


def make_model(blocks: int = 6, width: int = 8) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        *(Block(width) for _ in range(blocks)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)),
    )


def make_batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with stripes, upright or lying: a task for a few layers, not for twelve."""
    y = torch.randint(2, (size,))
    stripes = (torch.arange(8) % 2 * 2.0 - 1).expand(size, 1, 8, 8)
    return torch.where(y.view(-1, 1, 1, 1) > 0, stripes, stripes.mT) + torch.randn(size, 1, 8, 8), y


def main(epochs: int = 8, steps: int = 40) -> fp.training.History:
    torch.manual_seed(0)
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batch()[0])

    # A block must lower the loss by 0.1 = -log_g / samples to stay.
    method = BernoulliLayers(shrinker, samples=32 * steps, log_g=-0.1 * 32 * steps, rate=0.1)
    history = fp.training.History()
    for _ in range(epochs):
        for _ in range(steps):
            x, y = make_batch()
            loss = method.step(lambda module, x=x, y=y: cross_entropy(module(x), y))  # type: ignore[misc]
            history.step(loss)
        for change in method.end_epoch():
            print(change)
        history.end_epoch(shrinker.program, **method.numbers())

    print(history)
    return history


if __name__ == "__main__":
    main()
