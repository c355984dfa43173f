"""Which units are attention heads, and which belong to residual streams."""

from __future__ import annotations

from fxprune.analysis.axes import Axes
from fxprune.graph.program import Program
from fxprune.structure.blocks import find_blocks
from fxprune.structure.paths import operator


def stream_units(program: Program, axes: Axes) -> set[int]:
    """The units of residual streams: those of the sums that end residual blocks."""
    found: set[int] = set()
    for block in find_blocks(program):
        for label in axes.nodes[block.add]:
            for column in axes.final(label).columns:
                found.update(column.tolist())
    return found - {0}


def head_units(axes: Axes) -> set[int]:
    """The units of attention heads: those of axes that a product of two computed values batches over."""
    found: set[int] = set()
    for node, labels in axes.nodes.items():
        if operator(node) not in ("scaled_dot_product_attention", "matmul", "bmm", "baddbmm"):
            continue
        operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if len(operands) < 2 or not isinstance(labels, tuple):
            continue
        for label in labels[:-2]:
            for column in axes.final(label).columns:
                found.update(column.tolist())
    return found - {0}
