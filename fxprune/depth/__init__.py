"""Depth after training: residual blocks are scored, and those that matter least are deleted."""

from fxprune.depth.outcome import Deleted, LayersOutcome
from fxprune.depth.prune import prune_layers

__all__ = ["Deleted", "LayersOutcome", "prune_layers"]
