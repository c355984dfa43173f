"""Finds which axes of a tensor correspond before and after a view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Pairs the shortest runs of old and new sizes whose products are equal.

    >>> [(s.start, s.stop, t.start, t.stop) for s, t in runs([2, 12, 64], [2, 768])]
    [(0, 1, 0, 1), (1, 3, 1, 2)]
    """
    if 0 in old:
        yield slice(0, len(old)), slice(0, len(new))
        return
    i = j = 0
    while i < len(old) or j < len(new):
        start, begin = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield slice(start, i), slice(begin, j)
