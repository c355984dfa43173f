"""Scores drawn at random: the control that every criterion must beat."""

from __future__ import annotations

import numpy as np

from fxprune.importance.table import Evidence, FloatArray, unit_criterion


@unit_criterion("random")
def random(evidence: Evidence) -> FloatArray:
    """Uniform in [0, 1), by the seed; needs no weights."""
    return np.random.default_rng(evidence.seed).random(evidence.axes.n_units)
