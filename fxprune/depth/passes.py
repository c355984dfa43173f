"""The passes that delete residual blocks."""

from __future__ import annotations

from collections.abc import Iterable
from glob import escape

from fxprune.graph.gate import gates
from fxprune.pipeline import Result
from fxprune.structure.blocks import Block


def deletion(blocks: Iterable[Block]) -> str:
    """The pipeline that deletes blocks, each named exactly."""
    places = ['"' + escape(b.path).replace("\\", "\\\\").replace('"', '\\"') + '"' for b in blocks]
    steps = [f"insert-gates{{scope=block where={w}}} | set-gates{{where={w}}}" for w in places]
    return " | ".join([*steps, "delete-gated", "dead-code"])


def deleted(blocks: Iterable[Block], result: Result) -> list[str]:
    """The paths of the blocks that are gone; one that could not go still has its gate."""
    left = {path.rpartition(".")[0] for path in gates(result.program)}
    return [b.path for b in blocks if b.path not in left]
