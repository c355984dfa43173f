"""Tests of fxprune.capture.pointwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune.capture.pointwise import is_pointwise

X = torch.ones(4, 8)


class Peak(torch.autograd.Function):
    """Its forward is pointwise; its backward divides by the largest gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / g.abs().max()


@pytest.mark.parametrize(
    ("call", "values", "wanted"),
    [
        (torch.sign, [X], True),
        (lambda x, scale: x.div(scale).round() * scale, [X, torch.ones(())], True),
        (torch.mul, [X, 0.5], True),
        (lambda x: x / x.abs().max(), [X], False),
        (lambda x: x.cumsum(-1), [X], False),
        (lambda x: x.softmax(0), [X], False),
        (lambda x: x + torch.arange(x.shape[-1]), [X], False),
        (lambda x: x.view(-1, 8) * 2, [X], False),
        (lambda x: x + torch.rand_like(x), [X], False),
        (lambda x: Peak.apply(x), [X], False),
        (torch.add, [X, torch.ones(8)], False),
    ],
)
def test_positions_alone(call: Callable[..., Any], values: list[Any], wanted: bool) -> None:
    drawn = torch.random.get_rng_state()
    assert is_pointwise(call, values, X) is wanted
    assert torch.equal(torch.random.get_rng_state(), drawn)
