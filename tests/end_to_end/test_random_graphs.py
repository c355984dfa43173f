"""Random networks, pruned at random, agree with their silenced originals; `-m slow` for 500 of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fxprune as fp
from fxprune.testing.blocks import SIZE, random_network
from fxprune.testing.networks import (
    check_network,
    check_random_removal,
    check_slope,
    random_units,
)
from fxprune.testing.pipelines import DifferenceError
from fxprune.testing.statements import TOKENS, Statements

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


@pytest.mark.parametrize("seed", range(6))
def test_removals_hold_forward_and_backward(seed: int) -> None:
    train = seed % 3 == 2
    images = (torch.randn(2, 3, SIZE, SIZE),)
    check_random_removal(random_network(seed, 2 + seed % 5), images, seed, train=train)
    tokens = (torch.randn(2, TOKENS, 6),)
    check_random_removal(Statements(seed, 2 + seed % 7), tokens, seed, train=train)


def test_the_slope_sees_a_gradient_that_is_not_the_function_s() -> None:
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    program = fp.capture(random_network(0, 3).double().eval(), x)
    removed = random_units(program, 0.3)
    small = fp.shrink(program, fp.plan(program, removed))
    check_slope(program, removed, small, (x,))
    graph = small.module.graph
    result = graph.find_nodes(op="output")[0]
    value = result.all_input_nodes[0]
    with graph.inserting_before(result):
        twice = graph.call_function(torch.ops.aten.mul.Tensor, (value, 2))
        once = graph.call_function(torch.ops.aten.detach.default, (value,))
        same = graph.call_function(torch.ops.aten.sub.Tensor, (twice, once))
    result.replace_input_with(value, same)  # of the same value, and of twice the gradient
    small.module.recompile()
    with pytest.raises(DifferenceError, match="the slope is"):
        check_slope(program, removed, small, (x,))
