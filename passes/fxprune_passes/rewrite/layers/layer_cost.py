"""The cost of one layer, in MACs or in measured milliseconds."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import fx, nn

from fxprune.cost.macs import example_sizes
from fxprune.graph.program import Program, build_module
from fxprune.report.latency import compare_latency
from fxprune_passes.rewrite.layers.affine_layer import Geometry
from fxprune_passes.rewrite.layers.layer_call import operator_of, window_of

By = Literal["macs", "latency"]


class LayerCost:
    """The costs of layers at the sizes of the example inputs of a program; each geometry is measured once."""

    def __init__(self, program: Program, by: By) -> None:
        self._sizes = example_sizes(program)
        self._by = by
        self._measured: dict[Any, float] = {}

    def of(self, geometry: Geometry, source: fx.Node, output: fx.Node) -> float:
        """The cost of a layer with the given geometry between two values of the graph."""
        if self._by == "macs":
            return float(self.macs(geometry, output))
        value = source.meta["val"]
        key = geometry, tuple(self._sizes.shape(value)), value.dtype
        if key not in self._measured:
            self._measured[key] = _milliseconds(*key)
        return self._measured[key]

    def macs(self, geometry: Geometry, output: fx.Node) -> int:
        """The MACs of a layer with the given geometry that computes a value of the graph."""
        numbers = self._sizes.shape(output.meta["val"])
        return prod(numbers) * geometry.inputs // geometry.groups * prod(geometry.kernel)

    def text(self, cost: float) -> str:
        """A cost as text, in its unit."""
        return f"{cost:,.0f} MACs" if self._by == "macs" else f"{cost:.3f} ms"


def _milliseconds(geometry: Geometry, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """The time of one call in milliseconds, measured on a program of this layer alone."""
    g, tree, graph = geometry, nn.Module(), fx.Graph()
    tree.weight = nn.Parameter(
        torch.randn(g.outputs, g.inputs // g.groups, *g.kernel, dtype=dtype), requires_grad=False
    )
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    graph.output(graph.call_function(operator_of(g), (x, weight, None, *window_of(g))))
    module = build_module(tree, graph, training=False)
    program = Program(module, (torch.randn(shape, dtype=dtype),), {}, False, "layer")
    return compare_latency(program, program).before
