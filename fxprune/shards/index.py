"""The index of a checkpoint: which tensor is in which file, and how large all of them are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from fxprune.shards.changes import Changes

_SIZE, _COUNT = "total_size", "total_parameters"


def new_index(facts: Mapping[str, Any], changes: Changes) -> str:
    """The text of the index of the smaller checkpoint.

    Args:
        facts: what the old index says beside the places of the tensors; its other metadata stay.
        changes: what becomes of the tensors, by shard.
    """
    everything = [c for shard in changes.values() for c in shard]
    old = facts.get("metadata")
    metadata = dict(old) if isinstance(old, dict) else {}
    metadata[_SIZE] = sum(c.after.nbytes for c in everything)
    if isinstance(count := metadata.get(_COUNT), int):
        lost = sum(prod(c.before.shape) - prod(c.after.shape) for c in everything)
        metadata[_COUNT] = count - lost
    places = {c.before.name: name for name, shard in changes.items() for c in shard}
    top = {**facts, "metadata": metadata, "weight_map": dict(sorted(places.items()))}
    return json.dumps(top, indent=2, ensure_ascii=False) + "\n"
