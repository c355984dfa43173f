"""The index of a checkpoint: which tensor is in which file, and how large all of them are."""

from __future__ import annotations

import json
from math import prod

from fxprune.shards.changes import Changes
from fxprune.shards.checkpoint import Checkpoint

_SIZE, _COUNT = "total_size", "total_parameters"


def new_index(checkpoint: Checkpoint, changes: Changes) -> str:
    """The text of the index of the smaller checkpoint.

    Args:
        checkpoint: the old one; the other metadata of its index stay.
        changes: what becomes of the tensors, by shard.
    """
    everything = [c for shard in changes.values() for c in shard]
    facts = checkpoint.facts
    old = facts.get("metadata")
    metadata = dict(old) if isinstance(old, dict) else {}
    metadata[_SIZE] = sum(c.after.nbytes for c in everything)
    if isinstance(count := metadata.get(_COUNT), int):
        before = sum(prod(t.shape) for shard in checkpoint.shards for t in shard.tensors)
        metadata[_COUNT] = count - before + sum(prod(c.after.shape) for c in everything)
    places = {c.name: name for name, shard in changes.items() for c in shard}
    top = {**facts, "metadata": metadata, "weight_map": dict(sorted(places.items()))}
    return json.dumps(top, indent=2, ensure_ascii=False) + "\n"
