"""Programs on disk: a directory of a graph, its weights, and what was done to them."""

from fxprune.io.program import load, save

__all__ = ["load", "save"]
