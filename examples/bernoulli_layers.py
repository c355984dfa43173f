"""Residual blocks that a network does not need leave it while it trains (arXiv 2406.04549).

Made images, so that it runs in seconds: python examples/bernoulli_layers.py
"""

from __future__ import annotations

import torch
from torch import nn

import fxprune as fp
from fxprune_passes.methods import BernoulliLayers
from fxprune_passes.methods.method import Loss


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def make_batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with stripes, upright or lying."""
    y = torch.randint(2, (size,))
    stripes = (torch.arange(8) % 2 * 2.0 - 1).expand(size, 1, 8, 8)
    return torch.where(y.view(-1, 1, 1, 1) > 0, stripes, stripes.mT) + torch.randn(size, 1, 8, 8), y


def loss_on(x: torch.Tensor, y: torch.Tensor) -> Loss:
    return lambda module: nn.functional.cross_entropy(module(x), y)


def main(epochs: int = 8, steps: int = 40) -> fp.Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *(Block() for _ in range(6))),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batch()[0])
    before, history = shrinker.program, fp.training.History()
    # A block must lower the loss by 0.1 = -log_g / samples to stay.
    method = BernoulliLayers(shrinker, samples=32 * steps, log_g=-0.1 * 32 * steps, rate=0.1)
    for _ in range(epochs):
        for _ in range(steps):
            history.step(method.step(loss_on(*make_batch())))
        for change in method.end_epoch():
            print(change)
        history.end_epoch(shrinker.program, **method.numbers())
    program = method.finish_training()
    print(history, fp.compare(before, program, depth=1), sep="\n\n")
    return program


if __name__ == "__main__":
    main()
