"""Layers go by each score, a share of them at a time."""

from __future__ import annotations

from collections.abc import Callable

import fxprune as fp
from benchmarks.quality.real import Real
from fxprune.depth.scores import NAMES, DepthImportance

SCORES: tuple[DepthImportance, ...] = NAMES
SHARES = (0.25, 0.5)
NETWORKS = ("ViT", "GPT", "ResNet")  # how the names of the networks begin that have residual layers


def shortened(
    real: Real, program: fp.Program, layers: int, score: DepthImportance, share: float, seed: int
) -> Callable[[], fp.Program]:
    """What makes the small network."""

    def make() -> fp.Program:
        n = round(share * layers)
        found = fp.prune_layers(program, real.data, n, importance=score, seed=seed, verify=False)
        return found.program

    return make
