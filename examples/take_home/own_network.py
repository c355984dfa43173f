"""A network of one's own: narrower, in the same class, saved and loaded again."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import fxprune as fp


class Segmenter(nn.Module):
    """A small network with a skip connection, as one writes it."""

    def __init__(self, width: int = 32, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x).relu()
        up = self.up(self.down(stem).relu()).relu()
        logits: Tensor = self.head(torch.cat([stem, up], 1))
        return logits


def main() -> None:
    """Prunes to half of the MACs, takes the class back, and reads it from disk."""
    model = Segmenter().eval()
    outcome = fp.prune(model, torch.randn(2, 3, 64, 64), keep=0.5, fits=model)
    print(outcome.report)

    smaller = outcome.written
    assert isinstance(smaller, Segmenter)
    print(smaller)
    smaller(torch.randn(1, 3, 48, 80))  # at any size that the class takes

    with TemporaryDirectory() as folder:
        fp.save(smaller, folder)
        again = fp.load_model(folder, Segmenter())
    assert torch.equal(again(torch.ones(1, 3, 64, 64)), smaller(torch.ones(1, 3, 64, 64)))


if __name__ == "__main__":
    main()
