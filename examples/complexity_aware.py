"""Units and layers leave a network while it trains, by what they cost (arXiv 2411.09127).

Made images, so that it runs in seconds: python examples/complexity_aware.py
"""

from __future__ import annotations

import torch

import fxprune as fp
from fxprune_passes.methods import ComplexityAware
from method_loop import train
from stripes import make_batch, make_network


def main(epochs: int = 8, steps: int = 40) -> fp.Program:
    torch.manual_seed(0)
    model = make_network(blocks=4, inside=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batch()[0])
    before = shrinker.program
    # How much; layers (1) against units (0); compute (1) against parameters (0).
    method = ComplexityAware(
        shrinker, nu=1.0, alpha=0.1, beta=1.0, rate=1.0, settle_at=max(1, epochs - 2)
    )
    return train(method, before, make_batch, epochs, steps)


if __name__ == "__main__":
    main()
