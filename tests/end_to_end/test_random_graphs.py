"""Random networks, pruned at random, agree with their silenced originals; `-m slow` for 500 of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxprune.testing.blocks import SIZE, random_network
from fxprune.testing.networks import check_network

seeds = st.integers(0, 2**32 - 1)
plain = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def check(seed: int, length: int, share: float) -> None:
    model = random_network(seed, length)
    check_network(model, (torch.randn(2, 3, SIZE, SIZE),), shares=(share,), seed=seed)


@settings(plain, max_examples=20)
@given(seeds, st.integers(2, 6), st.floats(0.1, 0.7))
def test_a_few_random_networks(seed: int, length: int, share: float) -> None:
    check(seed, length, share)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(plain, max_examples=500)
@given(seeds, st.integers(2, 9), st.floats(0.1, 0.8))
def test_many_random_networks(seed: int, length: int, share: float) -> None:
    check(seed, length, share)
