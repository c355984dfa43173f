"""Weights go where activations are nearly linear; activations that became linear go, and layers around them fuse.

A residual MLP on random data, so that it runs in seconds: python examples/entropy_guided.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune_passes.methods import EntropyGuided


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return found


def loss_on(x: torch.Tensor, y: torch.Tensor) -> Callable[[nn.Module], torch.Tensor]:
    return lambda module: cross_entropy(module(x), y)


def main(rounds: int = 5, steps: int = 30) -> fp.Program:
    torch.manual_seed(0)
    blocks = [Block(16) for _ in range(3)]
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), *blocks, nn.Linear(16, 4)).train()
    x = torch.randn(32 * steps, 20)
    y = x[:, :4].abs().argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    history = fp.training.History()

    shrinker = fp.training.Shrinker(model, optimizer, args=x[:32])
    method = EntropyGuided(shrinker, zeta=0.5, most=0.9)  # each round half of the weights left
    for _ in range(rounds):
        for i in range(0, len(x), 32):
            history.step(method.step(loss_on(x[i : i + 32], y[i : i + 32])))
        for change in method.end_epoch():
            print(change)
        history.end_epoch(shrinker.program, **method.numbers())
    print(history)

    program = method.finish_training()
    print(program.module.code)
    return program


if __name__ == "__main__":
    main()
