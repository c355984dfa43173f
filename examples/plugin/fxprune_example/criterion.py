"""Importance by the largest weight of a unit, nearly: the sum of eighth powers."""

from __future__ import annotations

import torch

import fxprune as fp
from fxprune.importance.table import Evidence


@fp.criterion("example-largest", finish=lambda score: score ** (1 / 8))
def largest(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A saliency for each element; what a unit cuts of it is added up."""
    return tensor.abs() ** 8
