"""What scores are worth: remarks on scores without data, and on weights that were never trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from fxprune.graph.operands import get_argument, is_operator
from fxprune.graph.program import Program
from fxprune.importance.magnitude import NORMS
from fxprune.importance.score import Importance
from fxprune.remark import Remark

_BOUND = 1e-6  # by which a uniform draw may exceed its bound, by rounding
_NEAR = 0.95  # of the bound: what the largest of many draws exceeds


def score_remarks(program: Program, how: Importance) -> Iterator[Remark]:
    """Says aloud where scores rest on noise.

    Args:
        program: the network that is scored.
        how: by what.
    """
    if how.needs == "inputs" and how.data is None and how.batches is None:
        yield Remark(
            "missed",
            "score.no-data",
            f"criterion {how.criterion}",
            "the scores rest on the example inputs alone",
            why="no data was given, and examples are often random noise",
            do="pass data=, batches of what the network is for",
        )
    if how.needs != "nothing" and looks_untrained(program):
        yield Remark(
            "analysis",
            "score.untrained",
            program.name,
            "the weights look as if they were never trained",
            why="norms, or the ranges of the weights, are as torch makes them",
            do="load trained weights: scores of random weights are chance",
        )


def looks_untrained(program: Program) -> bool:
    """Whether every norm is as it is made; of a network without, whether every weight is in torch's first range."""
    tensors = program.tensors()
    if any(t.is_meta for t in tensors.values()):
        return False
    norms = [n for n in program.nodes if is_operator(n) and n.target._schema.name in NORMS]  # type: ignore[union-attr]
    scales = [tensors[w] for n in norms if (w := _scale(n)) in tensors]
    if scales:
        return all(bool((s == s.flatten()[0]).all()) for s in scales)
    weights = [t for t in program.module.parameters() if t.dim() > 1 and t.is_floating_point()]
    return bool(weights) and all(map(_as_made, weights))


def _scale(norm: fx.Node) -> str:
    weight = get_argument(norm, "weight")
    return str(weight.target) if isinstance(weight, fx.Node) else ""


def _as_made(weight: torch.Tensor) -> bool:
    """Whether a weight is uniform within 1 / sqrt(fan in), as linear and convolutional layers of torch begin."""
    bound = weight[0].numel() ** -0.5
    largest = float(weight.detach().abs().max())
    return _NEAR * bound < largest <= bound * (1 + _BOUND) and weight.numel() > 1
