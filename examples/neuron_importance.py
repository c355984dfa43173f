"""Hidden units that add least to the next layer leave a classifier while it trains.

Made digits, so that it runs in seconds: python examples/neuron_importance.py
"""

from __future__ import annotations

import torch
from torch import nn

import fxprune as fp
from fxprune_passes.methods import NeuronImportance
from method_loop import train

PATTERNS = torch.randn(10, 784, generator=torch.Generator().manual_seed(0))


def make_batch(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy copies of ten random patterns."""
    y = torch.randint(10, (size,))
    return PATTERNS[y] + 3 * torch.randn(size, 784), y


def main(epochs: int = 8, steps: int = 20) -> fp.Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 10))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batch()[0])
    before = shrinker.program
    # A fifth of each layer in a round, until 68 % of the units are gone.
    method = NeuronImportance(shrinker, share=0.2, target=0.68, observe_every=4)
    return train(method, before, make_batch, epochs, steps)


if __name__ == "__main__":
    main()
