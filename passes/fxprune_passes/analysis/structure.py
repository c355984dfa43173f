"""What a network is built of, as analyses that a pipeline can print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.pipeline import Analysis, Context
from fxprune.structure.blocks import Blocks, find_blocks
from fxprune.structure.linear import Regions, find_linear_regions


@dataclass(frozen=True)
class ResidualBlocks(Analysis[Blocks]):
    """Finds the residual blocks, nested ones too, with their parameters and MACs."""

    name: ClassVar[str] = "residual-blocks"

    def analyse(self, program: Program, ctx: Context) -> Blocks:
        return find_blocks(program)


@dataclass(frozen=True)
class LinearRegions(Analysis[Regions]):
    """Finds the runs of layers that are affine in their input, and why each ends."""

    name: ClassVar[str] = "linear-regions"

    def analyse(self, program: Program, ctx: Context) -> Regions:
        return find_linear_regions(program)
