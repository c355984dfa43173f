"""How the learning rate goes, as a factor of the task's rate."""

from __future__ import annotations

from math import cos, pi


def cosine(share: float) -> float:
    """From 1 to 0; share of training that is over, 0 to 1."""
    return 0.5 * (1 + cos(pi * share))


def one_cycle(share: float, warm: float = 0.3, first: float = 1 / 25, last: float = 4e-6) -> float:
    """One cycle as `torch.optim.lr_scheduler.OneCycleLR` has it: from `first` to 1 and down to `last`."""
    if share < warm:
        return 1 - (1 - first) * cosine(share / warm)
    return last + (1 - last) * cosine((share - warm) / (1 - warm))


SCHEDULES = {"cosine": cosine, "one-cycle": one_cycle}
