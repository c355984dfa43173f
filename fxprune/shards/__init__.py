"""Applies a plan to a checkpoint on disk: safetensors files, read, cut and written a piece at a time."""

from fxprune.shards.apply import apply_to_shards
from fxprune.shards.empty import without_weights
from fxprune.shards.open import open_shards
from fxprune.shards.result import AppliedShards

__all__ = ["AppliedShards", "apply_to_shards", "open_shards", "without_weights"]
