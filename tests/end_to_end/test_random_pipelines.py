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
from fxprune.pipeline import run_pipeline
from fxprune.testing.blocks import SIZE, random_network

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
