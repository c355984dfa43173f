"""Residual blocks that a network does not need leave it while it trains (arXiv 2406.04549).

Made images, so that it runs in seconds: python examples/bernoulli_layers.py
"""

from __future__ import annotations

import torch

import fxprune as fp
from fxprune_passes.methods import BernoulliLayers
from method_loop import train
from stripes import make_batch, make_network


def main(epochs: int = 8, steps: int = 40) -> fp.Program:
    torch.manual_seed(0)
    model = make_network(blocks=6, inside=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batch()[0])
    before = shrinker.program
    # A block must lower the loss by 0.1 = -log_g / samples to stay.
    method = BernoulliLayers(
        shrinker,
        samples=32 * steps,
        log_g=-0.1 * 32 * steps,
        rate=0.1,
        settle_at=max(1, epochs - 2),
    )
    return train(method, before, make_batch, epochs, steps)


if __name__ == "__main__":
    main()
