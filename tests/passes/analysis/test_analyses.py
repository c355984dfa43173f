"""Tests of the analyses that print what a network is built of."""

from __future__ import annotations

from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline


def test_a_pipeline_prints_blocks_and_regions(program: Program) -> None:
    result = run_pipeline(program, "residual-blocks | linear-regions")
    assert result.program is program
    blocks, regions = (r.what for r in result.select(kind="analysis"))
    assert "2 residual blocks" in blocks
    assert "two.0" in regions
