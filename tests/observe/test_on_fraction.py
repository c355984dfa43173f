"""Tests of on-fractions and entropies."""

from __future__ import annotations

import math

import pytest
import torch

from fxprune.observe import OnFraction


def test_on_fraction_counts_samples_and_positions() -> None:
    value = torch.randn(5, 3, 4, 2)
    value[0, 0, 0, 0] = 0.0  # 0 is off
    one = OnFraction(3)
    assert one(value, 1) is value
    assert int(one.seen) == 5 * 4 * 2
    assert one.on.tolist() == [int((value[:, c] > 0).sum()) for c in range(3)]
    torch.testing.assert_close(one.fraction(), (value > 0).double().mean((0, 2, 3)))


def test_entropy_is_that_of_a_coin() -> None:
    one = OnFraction(5)
    one.seen.fill_(8)
    one.on.copy_(torch.tensor([0, 1, 4, 7, 8]))

    def coin(p: float) -> float:
        return -sum(x * math.log2(x) for x in (p, 1 - p) if x)

    wanted = [coin(k / 8) for k in (0, 1, 4, 7, 8)]
    torch.testing.assert_close(one.entropy(), torch.tensor(wanted, dtype=torch.float64))
    assert one.layer_entropy() == pytest.approx(sum(wanted[1:4]) / 3)
    assert one.layer_entropy(plain=True) == pytest.approx(sum(wanted) / 5)
    one.on.fill_(8)
    assert one.layer_entropy() == 0.0
