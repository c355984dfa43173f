"""Tests of maxima."""

from __future__ import annotations

import torch

from fxprune.observe import Maximum


def test_maximum_of_each_unit_and_of_one_number() -> None:
    value = torch.randn(6, 7, 4)
    one, whole = Maximum(4), Maximum()
    one(value, -1)
    whole(torch.tensor(-3.0))
    torch.testing.assert_close(one.statistics()["max"], value.double().amax((0, 1)))
    assert whole.table() == {"stat": "max", "seen": 1, "max": -3.0}
