"""Random networks through gates and every exact rewrite: each pass keeps what it declares."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.pipeline import Context, run_pipeline
from fxprune.testing.blocks import SIZE, random_network
from fxprune.testing.pipelines import DifferenceError, check_pipeline, compare
from fxprune.testing.statements import TOKENS, Statements

REWRITES = (
    "repeat{max=6}(drop-identity | merge-duplicates | fold-constants{parameters=true} | "
    "fold-batchnorm | fuse-linear | dead-code)"
)
seeds = st.integers(0, 2**32 - 1)
plain = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def close_some(program: Program, rng: random.Random) -> Program:
    """Gates on branches, layers and units, some of them at 0, some of the soft ones in between."""
    steps = ["insert-gates", "insert-gates{scope=layer}", "insert-gates{scope=unit kind=soft}"]
    gated = run_pipeline(program, " | ".join(steps)).program
    for path, gate in gates(gated).items():
        size = gate.theta.numel()
        if size == 1 and rng.random() < 0.3:
            gated = run_pipeline(gated, f"set-gates{{where={path}}}").program
        elif size > 1 and rng.random() < 0.7:
            units = ",".join(map(str, rng.sample(range(size), rng.randint(1, size - 1))))
            value = rng.choice((0.0, 0.0, 0.5, 2.0))
            text = f"set-gates{{where={path} units={units} value={value}}}"
            gated = run_pipeline(gated, text).program
    return gated


def check(seed: int, length: int) -> None:
    torch.manual_seed(seed)
    model = random_network(seed, length).eval()
    program = fp.capture(model, torch.randn(2, 3, SIZE, SIZE))
    gated = close_some(program, random.Random(seed))
    result = run_pipeline(gated, f"delete-gated | absorb-gates | {REWRITES}")
    unchecked = [s.text for s in result.steps if s.changed and not s.checks]
    assert not unchecked


@settings(plain, max_examples=6)
@given(seeds, st.integers(2, 5))
def test_a_few_random_networks(seed: int, length: int) -> None:
    check(seed, length)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(plain, max_examples=200)
@given(seeds, st.integers(2, 8))
def test_many_random_networks(seed: int, length: int) -> None:
    check(seed, length)


@pytest.mark.parametrize("seed", range(12))
def test_a_few_networks_of_statements(seed: int) -> None:
    model = Statements(seed, 2 + seed % 5)
    assert check_pipeline(model, (torch.randn(2, TOKENS, 6),), seed, train=seed % 3 == 2)


@pytest.mark.parametrize("seed", range(6))
def test_a_few_networks_of_blocks_under_the_other_comparison(seed: int) -> None:
    model = random_network(seed, 2 + seed % 4)
    assert check_pipeline(model, (torch.randn(2, 3, SIZE, SIZE),), seed, train=seed % 3 == 2)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_many_networks_of_statements(first: int) -> None:
    for seed in range(first, first + 100):
        model = Statements(seed, 2 + seed % 7)
        check_pipeline(model, (torch.randn(2, TOKENS, 6),), seed, train=seed % 3 == 2)


def test_the_comparison_sees_a_difference_of_one_weight() -> None:
    program = fp.capture(Statements(0, 3).double(), (torch.randn(2, TOKENS, 6).double(),))
    other = run_pipeline(program, "dead-code").program
    editor = Context().edit(program)
    name = next(iter(program.tensors()))
    editor.set_tensor(name, program.tensors()[name].detach() * (1 + 1e-5))
    inputs = (torch.randn(2, TOKENS, 6).double(),)
    compare(program, other, inputs, "dead-code")
    with pytest.raises(DifferenceError, match="result 0 differs"):
        compare(program, editor.finish(), inputs, "dead-code")
