"""Calls of operators that create tensors."""

from __future__ import annotations

import torch

from fxprune.testing.sample import positive, sample, t

DOUBLE = {"dtype": torch.float64}

SAMPLES = [
    sample("aten.zeros", [3, 4], times=True, **DOUBLE),
    sample("aten.ones", [3, 4], times=True, **DOUBLE),
    sample("aten.full", [3, 4], 2.0, times=True, **DOUBLE),
    sample("aten.new_zeros", t(2), [3, 4], times=True),
    sample("aten.new_ones", t(2), [3, 4], times=True),
    sample("aten.new_full", t(2), [3, 4], 2.0, times=True),
    sample("aten.zeros_like", t(3, 4), times=True),
    sample("aten.ones_like", t(3, 4), times=True),
    sample("aten.full_like", t(3, 4), 2.0, times=True),
    sample("aten.rand_like", t(3, 4), times=True),
    sample("aten.randn_like", t(3, 4), times=True),
    sample("aten.randint_like", t(3, 4), 9, times=True),
    sample("aten.bernoulli", positive(3, 4), times=True),
    sample("aten.bernoulli.p", t(3, 4), 0.5, times=True),
    sample("aten.arange", 5, times=True, **DOUBLE),
    sample("aten.arange.start", 2, 7, times=True, **DOUBLE),
    sample("aten.arange.start_step", 2, 12, 2, times=True, **DOUBLE),
    sample("aten.range.step", 0, 4, 1, times=True, **DOUBLE),
    sample("aten.linspace", 0, 1, 5, times=True, **DOUBLE),
    sample("aten.logspace", 0, 1, 5, times=True, **DOUBLE),
    sample("aten.eye", 4, times=True, **DOUBLE),
    sample("aten.eye.m", 4, 3, times=True, **DOUBLE),
    sample("aten.rand", [3, 4], times=True, **DOUBLE),
    sample("aten.randn", [3, 4], times=True, **DOUBLE),
    sample("aten.randint", 9, [3, 4], times=True, **DOUBLE),
    sample("aten.randperm", 5, times=True, **DOUBLE),
    sample("aten.normal.float_float", 0.0, 1.0, [3, 4], times=True, **DOUBLE),
    sample("aten.scalar_tensor", 2.0, times=True, **DOUBLE),
    sample("aten.tril_indices", 4, 4, times=True),
    sample("aten.triu_indices", 4, 4, times=True),
    sample("aten.hann_window", 5, times=True, **DOUBLE),
]
