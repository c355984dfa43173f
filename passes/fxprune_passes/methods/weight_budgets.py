"""How many weights of each layer go."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np


def split_budget(budget: int, ratios: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Parts of a budget in proportion to softmax(ratios), none above its cap.

    What a cap leaves over is spread over the others by the same softmax, again and again. Ratios that are
    infinite come first and share alike; finite ones get what those cannot take. Whole numbers by largest
    remainders, the first of equal ones first.

    Args:
        budget: how much there is; no more is given than the sum of the caps.
        ratios: one for each part, none NaN.
        caps: the most that each part may get.

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
    """exp(ratios - max) over its sum; infinite ones share alike."""
    found = np.array(ratios, np.float64)
    top = found.max()
    powers = np.exp(found - top) if np.isfinite(top) else (found == top).astype(np.float64)
    share: np.ndarray = powers / powers.sum()
    return share


def _whole(wanted: np.ndarray, total: int) -> list[int]:
    """Whole numbers next to some numbers, with a given sum."""
    parts = np.floor(wanted).astype(np.int64)
    order = np.argsort(parts - wanted, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return [int(part) for part in parts]


def irrelevance_ratios(irrelevances: Sequence[float]) -> list[float]:
    """R_l = sum(I) / I_l, infinite where I_l is 0."""
    total = sum(irrelevances)
    return [total / one if one > 0 else inf for one in irrelevances]
