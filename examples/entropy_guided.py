"""Weights go where activations are nearly linear, then the activations that became so (arXiv 2308.06619).

Made numbers, so that it runs in seconds: python examples/entropy_guided.py
"""

from __future__ import annotations

import torch
from torch import nn

import fxprune as fp
from fxprune_passes.methods import EntropyGuided
from method_loop import train


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return found


def make_batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Random numbers; the class is the largest of the first four."""
    x = torch.randn(size, 20)
    return x, x[:, :4].abs().argmax(1)


def main(epochs: int = 5, steps: int = 30) -> fp.Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 16), nn.ReLU(), *(Block() for _ in range(3)), nn.Linear(16, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batch()[0])
    before = shrinker.program
    # Half of the weights left in each round, of one layer nine tenths at most.
    method = EntropyGuided(shrinker, zeta=0.5, most=0.9)
    return train(method, before, make_batch, epochs, steps)


if __name__ == "__main__":
    main()
