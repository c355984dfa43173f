"""Units go by each of our criteria, down to a share of the MACs."""

from __future__ import annotations

from collections.abc import Callable

import fxprune as fp
from benchmarks.quality.real import Real

WITHOUT_DATA = ("random", "magnitude", "l1", "lamp", "bn-scale")
CRITERIA = (*WITHOUT_DATA, "activation", "wanda", "taylor", "fisher", "gauss-newton")
SHARES = (0.7, 0.5)


def pruned(
    real: Real, program: fp.Program, criterion: str, keep: float, seed: int
) -> Callable[[], fp.Program]:
    """What makes the small network; it is not verified again, since only its quality is of interest."""
    data = None if criterion in WITHOUT_DATA else real.data

    def make() -> fp.Program:
        outcome = fp.prune(
            program, keep=keep, importance=criterion, data=data, seed=seed, verify=False
        )
        return outcome.program

    return make
