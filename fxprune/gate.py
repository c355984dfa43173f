"""Gates, under the import path that the documentation names; the code is in `fxprune.graph.gate`."""

from fxprune.graph.gate import Gate, gates

__all__ = ["Gate", "gates"]
