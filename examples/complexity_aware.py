"""Units and layers leave a network while it trains, by what they cost (arXiv 2411.09127).

Made images, so that it runs in seconds: python examples/complexity_aware.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune_passes.methods import ComplexityAware


class Block(nn.Module):
    """x + F(x): one gate goes on F(x), and one on each unit inside of it."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(width, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)),
            nn.ReLU(),
            *(nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.branch(x))


def make_model(blocks: int = 4, width: int = 8) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        *(Block(width, 16) for _ in range(blocks)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)),
    )


def make_batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with stripes, upright or lying: a task for a few units."""
    y = torch.randint(2, (size,))
    stripes = (torch.arange(8) % 2 * 2.0 - 1).expand(size, 1, 8, 8)
    return torch.where(y.view(-1, 1, 1, 1) > 0, stripes, stripes.mT) + torch.randn(size, 1, 8, 8), y


def main(epochs: int = 8, steps: int = 40) -> fp.training.History:
    torch.manual_seed(0)
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batch()[0])

    # How much, layers (1) against units (0), compute (1) against parameters (0).
    method = ComplexityAware(shrinker, nu=1.0, alpha=0.1, beta=1.0, rate=0.5)
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
