"""Images of stripes in noise, and a residual network that tells upright from lying ones."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, inside, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def make_network(blocks: int, inside: int) -> nn.Module:
    """Residual blocks on 8 channels, each with `inside` channels between its two convolutions."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *(Block(inside) for _ in range(blocks))),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )


def make_batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with stripes, upright or lying."""
    y = torch.randint(2, (size,))
    stripes = (torch.arange(8) % 2 * 2.0 - 1).expand(size, 1, 8, 8)
    return torch.where(y.view(-1, 1, 1, 1) > 0, stripes, stripes.mT) + torch.randn(size, 1, 8, 8), y
