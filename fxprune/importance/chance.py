"""Random scores: the control that every criterion should beat."""

from __future__ import annotations

import numpy as np

from fxprune.importance.table import Evidence, FloatArray, unit_criterion


@unit_criterion("random", needs="nothing")
def random(evidence: Evidence) -> FloatArray:
    """Scores drawn uniformly from [0, 1) with the given seed; needs no weights."""
    return np.random.default_rng(evidence.seed).random(evidence.axes.n_units)
