"""A search that works out few quotients to find the largest one of each unit."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor

# Elements of the largest temporary array in the search for the largest contribution.
CHUNK = 1 << 20
# Places of each unit that are looked at first, and the share of all places from which on all of them are.
FIRST, MANY = 16, 0.25


def largest_quotients(
    bound: Tensor,
    known: Tensor,
    width: int,
    quotients: Callable[[Tensor, Tensor], Tensor],
    all_quotients: Callable[[], Tensor],
) -> Tensor:
    """The largest quotient of each unit `[N]`, in the type of the bounds; or what is known, where that is larger.

    Args:
        bound: `[N, places]`, not below any quotient of the unit at the place.
        known: `[N]`.
        width: elements that one unit at one place takes to work out.
        quotients: the largest quotients `[n]` of units `[n]` at places `[n]`.
        all_quotients: the same over all places, for each unit, without looking at bounds.
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

    first = bound.topk(min(FIRST, bound.shape[1]), 1).indices
    best = known.reshape(-1).to(bound.dtype)
    best = look(units.repeat_interleave(first.shape[1]), first.flatten(), best)
    rounding = 8 * torch.finfo(bound.dtype).eps
    k, place = (bound > (best + rounding * best.abs())[:, None]).nonzero(as_tuple=True)
    if len(k) > MANY * bound.numel():
        return all_quotients()
    return look(k, place, best)


def at_once(width: int) -> int:
    """How many rows of `width` elements are worked out at once: at least one."""
    return max(1, CHUNK // max(1, width))
