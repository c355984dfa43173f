"""Finds the sequences of layers that are affine in their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.pipeline import Analysis, Context
from fxprune.structure.linear import Regions, find_linear_regions


@dataclass(frozen=True)
class LinearRegions(Analysis[Regions]):
    """Finds the sequences of layers that are affine in their input, and why each of them ends."""

    name: ClassVar[str] = "linear-regions"

    def analyse(self, program: Program, ctx: Context) -> Regions:
        return find_linear_regions(program)
