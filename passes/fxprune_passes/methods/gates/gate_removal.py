"""Deletes the branches and units that closed gates switch off, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape

import torch

from fxprune.graph.gate import gates
from fxprune.training import Change, Shrinker
from fxprune_passes.rewrite.delete_gated import DeleteGated

Tensor = torch.Tensor


@torch.no_grad()
def remove_gated(
    shrinker: Shrinker, closed: Mapping[str, Tensor], opened: Sequence[str], *, verify: bool
) -> list[Change]:
    """Deletes the branches and units whose gates are to be closed, and the gates that stay open for good.

    Args:
        shrinker: the shrinker of the network in training.
        closed: for each gate path the thetas to close, as booleans shaped like theta.
        opened: the paths of gates whose thetas are at 1.
        verify: whether the removal is verified.

    Returns:
        The changes, possibly none. If the removal fails, the gates are restored.
    """
    found, names = gates(shrinker.program), [*closed, *opened]
    if not names:
        return []
    before = [(t, t.clone()) for p in names for t in (found[p].theta, found[p].sample)]
    try:
        for path, mask in closed.items():
            found[path].theta.masked_fill_(mask, 0)
            found[path].sample.masked_fill_(mask, 0)
        for path in opened:
            found[path].sample.fill_(1)  # in train mode a gate multiplies by its last draw
        one = DeleteGated(where=tuple(map(escape, names)))
        change = shrinker.run(one, verify=verify)
    except Exception:
        for tensor, old in before:
            tensor.copy_(old)
        raise
    return [change] if change.changed else []
