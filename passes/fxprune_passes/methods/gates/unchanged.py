"""Evaluates a network again on the same random numbers, and leaves its state as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from fxprune.graph.leaf import Leaf
from fxprune.process.random_state import random_state, set_random_state


@contextmanager
def unchanged(module: nn.Module, random: Mapping[str, Any]) -> Iterator[None]:
    """Draws from a given random state inside, and restores the present one and all buffers afterwards.

    Running statistics are among the buffers. Observers are frozen in the meantime, and gates keep their samples.

    Args:
        module: the network; its mode stays.
        random: the random state, see `fxprune.process.random_state`.
    """
    leaves = [m for m in module.modules() if isinstance(m, Leaf) and not m.frozen]
    inside = {b for leaf in leaves for b in leaf.buffers()}
    before = [(b, b.clone()) for b in module.buffers() if b not in inside]
    now = random_state()
    for leaf in leaves:
        leaf.frozen = True
    try:
        set_random_state(random)
        yield
    finally:
        set_random_state(now)
        for leaf in leaves:
            leaf.frozen = False
        for buffer, old in before:
            buffer.copy_(old)
