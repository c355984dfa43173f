"""Deletes what gates have closed, in one transaction."""

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
    """Deletes branches and units whose gates are to close, and gates that are to stay open.

    Args:
        shrinker: of the network that trains.
        closed: by the gate's path which of its thetas close, booleans shaped like theta.
        opened: paths of gates whose thetas are at 1.
        verify: hold the removal to what it declares to keep.

    Returns:
        What was done, perhaps nothing. Where it fails, gates are as they were.
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
