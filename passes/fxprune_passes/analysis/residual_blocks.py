"""Finds the residual blocks of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.pipeline import Analysis, Context
from fxprune.structure.blocks import Blocks, find_blocks


@dataclass(frozen=True)
class ResidualBlocks(Analysis[Blocks]):
    """Finds the residual blocks, including nested ones, with the parameters and MACs of each."""

    name: ClassVar[str] = "residual-blocks"

    def analyse(self, program: Program, ctx: Context) -> Blocks:
        return find_blocks(program)
