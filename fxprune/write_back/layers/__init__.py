"""Writes deleted layers back: they leave their lists, or modules that pass on or return zeros take their place."""

from fxprune.write_back.layers.removed import Removed
from fxprune.write_back.layers.result import Deletion, Rewritten, without_layers

__all__ = ["Deletion", "Removed", "Rewritten", "without_layers"]
