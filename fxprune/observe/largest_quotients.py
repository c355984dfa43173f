"""A search for the largest quotient of each unit that computes only few quotients."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor

# Elements of the largest temporary array in the search for the largest contribution.
CHUNK = 1 << 20
# Shares of all places that may be larger than what is known: from the first on the FIRST likeliest of each unit are
# looked at before the others, from the second on all of them are.
SOME, MANY = 0.05, 0.25
FIRST = 16


def largest_quotients(
    bound: Tensor,
    known: Tensor,
    width: int,
    quotients: Callable[[Tensor, Tensor], Tensor],
    all_quotients: Callable[[], Tensor],
) -> Tensor:
    """Returns the largest quotient of each unit, `[N]`, or the known one where that is larger.

    The result has the type of the bounds.

    Args:
        bound: `[N, places]`, an upper bound on the quotients of a unit at a place.
        known: `[N]`, quotients that are known already.
        width: the number of elements needed to compute one unit at one place.
        quotients: computes the largest quotients `[n]` of units `[n]` at places `[n]`.
        all_quotients: computes the largest quotient of each unit over all places, without bounds.
    """
    if torch.compiler.is_compiling():  # how many are looked at would depend on the data
        return all_quotients()
    units = torch.arange(len(bound), device=bound.device)

    def look(k: Tensor, place: Tensor, best: Tensor) -> Tensor:
        step = at_once(width)
        for i in range(0, len(k), step):
            some = k[i : i + step]
            best = best.scatter_reduce(0, some, quotients(some, place[i : i + step]), "amax")
        return best

    def above(best: Tensor) -> Tensor:
        rounding = 8 * torch.finfo(bound.dtype).eps * best.sign()
        return bound > (best * (1 + rounding))[:, None]

    best = known.reshape(-1).to(bound.dtype)
    left = above(best)
    if left.count_nonzero() > SOME * bound.numel():
        first = bound.topk(min(FIRST, bound.shape[1]), 1).indices
        best = look(units.repeat_interleave(first.shape[1]), first.flatten(), best)
        left = above(best)
        if left.count_nonzero() > MANY * bound.numel():
            return all_quotients()
    k, place = left.nonzero(as_tuple=True)
    return look(k, place, best)


def at_once(width: int) -> int:
    """Returns how many rows of `width` elements are computed at once, at least 1."""
    return max(1, CHUNK // max(1, width))
