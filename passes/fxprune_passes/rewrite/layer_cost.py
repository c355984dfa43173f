"""What one layer costs: MACs, or measured milliseconds."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import fx, nn

from fxprune.cost.macs import example_sizes
from fxprune.graph.program import Program, build_module
from fxprune.report.latency import compare_latency
from fxprune_passes.rewrite.affine_layer import Geometry

By = Literal["macs", "latency"]
_CONVOLUTIONS: dict[int, Any] = {
    1: torch.ops.aten.conv1d.default,
    2: torch.ops.aten.conv2d.default,
    3: torch.ops.aten.conv3d.default,
}


def operator_of(geometry: Geometry) -> Any:
    """The operator that calls a layer of this geometry."""
    return _CONVOLUTIONS[geometry.spatial] if geometry.spatial else torch.ops.aten.linear.default


def window_of(geometry: Geometry) -> tuple[Any, ...]:
    """The arguments after the bias."""
    g = geometry
    if not g.spatial:
        return ()
    return list(g.stride), list(g.padding), list(g.dilation), g.groups


class LayerCost:
    """Costs of layers at the sizes of a program's example inputs; what was measured is remembered."""

    def __init__(self, program: Program, by: By) -> None:
        self._sizes = example_sizes(program)
        self._by = by
        self._measured: dict[Any, float] = {}

    def of(self, geometry: Geometry, source: fx.Node, output: fx.Node) -> float:
        """The cost of a layer of some geometry from one value of the graph to another."""
        if self._by == "macs":
            return float(self.macs(geometry, output))
        value = source.meta["val"]
        key = geometry, tuple(self._sizes.shape(value)), value.dtype
        if key not in self._measured:
            self._measured[key] = _milliseconds(*key)
        return self._measured[key]

    def macs(self, geometry: Geometry, output: fx.Node) -> int:
        """The MACs of a layer of some geometry that gives a value of the graph."""
        numbers = self._sizes.shape(output.meta["val"])
        return prod(numbers) * geometry.inputs // geometry.groups * prod(geometry.kernel)

    def text(self, cost: float) -> str:
        """A cost with its unit."""
        return f"{cost:,.0f} MACs" if self._by == "macs" else f"{cost:.3f} ms"


def _milliseconds(geometry: Geometry, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """The time of one call, measured on a program of this layer alone."""
    g, tree, graph = geometry, nn.Module(), fx.Graph()
    tree.weight = nn.Parameter(
        torch.randn(g.outputs, g.inputs // g.groups, *g.kernel, dtype=dtype), requires_grad=False
    )
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    graph.output(graph.call_function(operator_of(g), (x, weight, None, *window_of(g))))
    module = build_module(tree, graph, training=False)
    program = Program(module, (torch.randn(shape, dtype=dtype),), {}, False, "layer")
    return compare_latency(program, program).before
