"""Importance of units: criteria by name, and the evidence that they use."""

from fxprune.importance.default import default_criterion, importance_of
from fxprune.importance.reliability import score_remarks
from fxprune.importance.score import Importance, score_units
from fxprune.importance.table import criterion, criterion_names, unit_criterion

__all__ = [
    "Importance",
    "criterion",
    "criterion_names",
    "default_criterion",
    "importance_of",
    "score_remarks",
    "score_units",
    "unit_criterion",
]
