from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.testing.sample import Sample
from fxprune.testing.samples import samples_of_family


@pytest.mark.parametrize("sample", samples_of_family("shape"), ids=str)
def test_agrees_with_the_operator(sample: Sample, judge: Callable[[Sample], None]) -> None:
    judge(sample)


class Rotated(nn.Module):
    """Turns pairs of features by a right angle, written in place, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        turned = torch.empty_like(x)
        turned[..., 0::2] = -x[..., 1::2]
        turned[..., 1::2] = x[..., 0::2]
        return self.two(x + turned)


def test_pairs_that_are_written_in_place_are_removed_together() -> None:
    outcome = fp.prune(Rotated().eval(), torch.randn(2, 5, 3), keep=0.5)
    kept = outcome.plan.kept["one.weight"][0].reshape(-1, 2)
    assert len(kept) == 3
    assert (kept[:, 0] % 2 == 0).all()
    assert (kept[:, 1] == kept[:, 0] + 1).all()
