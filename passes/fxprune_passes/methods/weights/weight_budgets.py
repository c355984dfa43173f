"""Computes how many weights of each layer are pruned."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np


def split_budget(budget: int, ratios: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Splits a budget in proportion to softmax(ratios), with a cap on each part.

    The excess over a cap is distributed among the other parts by the same softmax, repeatedly. Infinite
    ratios are served first and in equal shares; finite ones receive what those cannot take. The parts are
    rounded to whole numbers by the largest remainders; of equal remainders the first is rounded up.

    Args:
        budget: the amount to split; no more than the sum of the caps is assigned.
        ratios: one for each part, none NaN.
        caps: the upper bound of each part.

    Returns:
        The parts; they sum to min(budget, sum(caps)) exactly.
    """
    left = min(budget, sum(caps))
    parts = [0] * len(caps)
    places = [i for i, cap in enumerate(caps) if cap > 0]
    while places:
        wanted = left * _softmax([ratios[i] for i in places])
        full = [i for i, want in zip(places, wanted, strict=True) if want >= caps[i]]
        if not full:
            for i, part in zip(places, _whole(wanted, left), strict=True):
                parts[i] = part
            break
        for i in full:
            parts[i] = caps[i]
            left -= caps[i]
        places = [i for i in places if i not in full]
    return parts


def _softmax(ratios: Sequence[float]) -> np.ndarray:
    """The softmax of the ratios, in which infinite ratios have equal shares."""
    found = np.array(ratios, np.float64)
    top = found.max()
    powers = np.exp(found - top) if np.isfinite(top) else (found == top).astype(np.float64)
    share: np.ndarray = powers / powers.sum()
    return share


def _whole(wanted: np.ndarray, total: int) -> list[int]:
    """Rounds numbers to whole numbers with a given sum."""
    parts = np.floor(wanted).astype(np.int64)
    order = np.argsort(parts - wanted, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return [int(part) for part in parts]


def irrelevance_ratios(irrelevances: Sequence[float]) -> list[float]:
    """The ratios R_l = sum(I) / I_l; infinite where I_l is 0."""
    total = sum(irrelevances)
    return [total / one if one > 0 else inf for one in irrelevances]
