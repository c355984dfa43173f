"""Ranks units by their contributions to the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.importance.table import FloatArray
from fxprune.observe import Contribution


def rank_contributions(
    axes: Axes, watched: Mapping[str, Contribution], lam_avg: float, lam_max: float
) -> FloatArray:
    """The rank `lam_avg * C_avg + lam_max * C_max` of each unit, normalized for each reader and summed over readers.

    Where a unit covers several positions of a reader, their C_avg are summed and the largest C_max is taken.

    Args:
        axes: the solved labels of the program.
        watched: the observers of the program by their paths.
        lam_avg: the weight of C_avg.
        lam_max: the weight of C_max.

    Returns:
        One number for each unit `[n_units]`; NaN where no reader has observed it.
    """
    scores = np.full(axes.n_units, np.nan)
    for path, one in watched.items():
        for units, ranks in _ranks(axes, path, one, lam_avg, lam_max):
            shares = ranks / (ranks.sum() or 1.0)
            scores[units] = np.nan_to_num(scores[units]) + shares
    return scores


def _ranks(
    axes: Axes, path: str, one: Contribution, lam_avg: float, lam_max: float
) -> list[tuple[IntArray, FloatArray]]:
    """The units of one reader and their ranks, for each column of its label."""
    average, largest = (x.nan_to_num(0.0).cpu().numpy() for x in one.statistics().values())
    found = []
    for column in axes.params[f"{path}.total"][0].columns:
        units, index = np.unique(column, return_inverse=True)
        top = np.full(len(units), -np.inf)
        np.maximum.at(top, index, largest)
        ranks = lam_avg * np.bincount(index, average) + lam_max * top
        found.append((units[units > 0], ranks[units > 0]))
    return found
