"""Tests of means."""

from __future__ import annotations

import pytest
import torch

from fxprune.observe import Mean


def test_mean_of_each_unit_and_of_all() -> None:
    value = torch.randn(6, 7, 4)
    one, whole = Mean(4), Mean()
    one(value, -1)
    whole(value)
    torch.testing.assert_close(one.statistics()["mean"], value.double().mean((0, 1)))
    assert float(whole.statistics()["mean"]) == pytest.approx(float(value.double().mean()))
