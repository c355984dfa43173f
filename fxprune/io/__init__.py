"""Programs on disk: a directory with the graph, the weights, and the plan and report of a pruning run."""

from fxprune.io.program import load, save

__all__ = ["load", "save"]
