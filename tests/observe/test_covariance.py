"""Tests of covariances."""

from __future__ import annotations

import torch
from torch import nn

import fxprune as fp
from fxprune.observe import Covariance, observers
from fxprune.pipeline import run_pipeline


def test_far_from_zero_the_covariance_keeps_its_digits() -> None:
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, 4, generator=rng, dtype=torch.float64) + 1e8 for _ in range(20)]
    one = Covariance(4)
    for part in parts:
        one(part, -1)
    torch.testing.assert_close(
        one.covariance(), torch.cov(torch.cat(parts).T, correction=0), rtol=1e-6, atol=1e-6
    )


def test_covariance_shrinks_in_both_axes(small: nn.Module) -> None:
    x = torch.randn(2, 1, 4, 4)
    program = run_pipeline(fp.capture(small, x), "insert-observers{stat=covariance}").program
    program(x)
    old = observers(program)["act.observer"]
    assert isinstance(old, Covariance)
    smaller = fp.shrink(program, fp.plan(program, {"conv.weight": (0, [1, 4])}))
    new = observers(smaller)["act.observer"]
    assert isinstance(new, Covariance)
    kept = torch.tensor([0, 2, 3, 5])
    assert torch.equal(new.scatter, old.scatter[kept][:, kept])
    assert torch.equal(new.average, old.average[kept])
    smaller(x)
    assert int(new.seen) == 64
    assert int(old.seen) == 32
