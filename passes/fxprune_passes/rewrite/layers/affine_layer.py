"""Reads calls of convolutions and linear layers as layers of one form.

A linear layer is a convolution without spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator

_KINDS = frozenset(
    ("linear", "convolution", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)))
)


@dataclass(frozen=True)
class Geometry:
    """Which inputs each output of a layer sums over; the tuples have one entry for each spatial axis.

    Output `t` reads the inputs at `t*stride - padding + j*dilation` for `j < kernel`.
    """

    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def spatial(self) -> int:
        """The number of spatial axes; 0 for a linear layer."""
        return len(self.kernel)


@dataclass(frozen=True)
class Layer:
    """One call of a convolution or linear layer.

    Attributes:
        node: the call.
        source: the value it reads.
        weight: `[out, in/g, *k]`; transposed: `[in, out/g, *k]`.
        bias: `[out]`.
        geometry: the geometry of the call; for a transposed convolution, that from its output to its input.
        transposed: whether it is a transposed convolution.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    geometry: Geometry
    transposed: bool

    @property
    def axis(self) -> int:
        """The channel axis of the input and the output, counted from the end."""
        return -1 - self.geometry.spatial

    @property
    def tensors(self) -> tuple[fx.Node | None, ...]:
        """The weight and the bias."""
        return self.weight, self.bias


def read_layer(node: Any) -> Layer | None:
    """Reads a node as a layer; None where it is none, or where its padding differs between the two sides."""
    if not isinstance(node, fx.Node) or operator(node) not in _KINDS:
        return None
    source, weight, bias = (get_argument(node, name) for name in ("input", "weight", "bias"))
    shape = weight.meta["val"].shape
    linear = operator(node) == "linear"
    if len(shape) < 2:
        return None
    transposed = "transpose" in operator(node) or (
        operator(node) == "convolution" and bool(get_argument(node, "transposed"))
    )
    groups = 1 if linear else get_argument(node, "groups")
    window = _window(node, tuple(shape[2:]))
    if window is None:
        return None
    first, second = shape[0], shape[1] * groups
    inputs, outputs = (first, second) if transposed else (second, first)
    geometry = Geometry(inputs, outputs, groups, tuple(shape[2:]), *window)
    return Layer(node, source, weight, bias, geometry, transposed)


def _window(
    node: fx.Node, kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The stride, padding and dilation as integers; None where they cannot be given as such."""
    if not kernel:
        return (), (), ()
    stride, padding, dilation = (get_argument(node, n) for n in ("stride", "padding", "dilation"))
    dilation = _spread(dilation, len(kernel))
    if padding == "valid":
        padding = [0]
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    found = _spread(stride, len(kernel)), _spread(padding, len(kernel)), dilation
    return found if all(isinstance(x, int) for part in found for x in part) else None


def _spread(value: Any, length: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values


def channel_axis(layer: Layer) -> int:
    """The channel axis of the input and the output of a layer, counted from the start."""
    return cast(int, layer.node.meta["val"].dim()) + layer.axis
