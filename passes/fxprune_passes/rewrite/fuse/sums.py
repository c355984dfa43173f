"""Fuses the branches of a sum that read the same value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.fuse.compose import sum_geometry, sum_objection, sum_weight
from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.layers.affine_layer import Geometry, Layer, channel_axis, read_layer
from fxprune_passes.rewrite.layers.layer_call import set_geometry
from fxprune_passes.rewrite.layers.stored_weights import (
    layer_bias,
    layer_weight,
    set_bias,
    set_weight,
)
from fxprune_passes.rewrite.scales.batch_norm import eval_objection, read_affine, remove_batch_norm

Tensor = torch.Tensor


@dataclass(frozen=True)
class _Term:
    """One operand of a sum, read as a layer.

    Attributes:
        node: the operand.
        source: the value that it reads; the operand itself where it is the identity of that value.
        geometry: the geometry of the layer.
        layer: the call; None for a batch norm and for the identity.
        weight: gives `[out, in/g, *k]` in float64.
        bias: `[out]` in float64; None where there is none.
    """

    node: fx.Node
    source: fx.Node
    geometry: Geometry
    layer: Layer | None
    weight: Callable[[], Tensor]
    bias: Tensor | None


def fuse_sum(fusion: Fusion, node: fx.Node) -> bool:
    """Fuses the two operands of a sum or a difference into one layer; returns whether it did."""
    terms = _terms(fusion, node)
    if terms is None:
        return False
    a, b = terms
    why = _sum_objection(fusion, node, a, b)
    if why:
        return fusion.leave(node, "the branches are not fused", why, "sum")
    whole = sum_geometry(a.geometry, b.geometry)
    old = sum(fusion.cost.of(t.geometry, t.source, node) for t in terms if t.layer is not None)
    new = fusion.cost.of(whole, a.source, node)
    costs = fusion.text(new, old)
    if fusion.costs_more(new, old):
        return fusion.leave(
            node, "the branches are not fused", f"the fused layer would cost {costs}", "cost"
        )
    if not fusion.allow(node, "fused the branches of the sum", "summed", costs):
        return False
    _make_sum(fusion, node, a, b)
    return True


def _terms(fusion: Fusion, node: fx.Node) -> tuple[_Term, _Term] | None:
    """The two operands as layers of one input; None unless at least one of them is a layer."""
    if operator(node) not in ("add", "sub") or len(node.args) < 2:
        return None
    a, b = node.args[:2]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return None
    values = [n.meta["val"] for n in (a, b, node)]
    if not all(isinstance(v, torch.Tensor) for v in values):
        return None
    for x in _readings(fusion, a, b):
        for y in _readings(fusion, b, a):
            if x.source is y.source and (x.layer is not None or y.layer is not None):
                return x, y
    return None


def _readings(fusion: Fusion, node: fx.Node, other: fx.Node) -> Iterator[_Term]:
    """The possible ways to read an operand as a layer."""
    layer = read_layer(node)
    if layer is not None and not layer.transposed:
        bias = None if layer.bias is None else layer_bias(fusion.editor, layer)
        yield _Term(
            node,
            layer.source,
            layer.geometry,
            layer,
            lambda: layer_weight(fusion.editor, layer),
            bias,
        )
    beside = read_layer(other)
    if beside is None or beside.transposed:
        return
    channels, spatial = beside.geometry.outputs, beside.geometry.spatial
    diagonal = _pointwise(channels, spatial)
    if operator(node) == "batch_norm" and not eval_objection(node) and channel_axis(beside) == 1:
        affine = read_affine(fusion.editor, node)
        source = get_argument(node, "input")
        scale = _diagonal(affine.scale, spatial)
        yield _Term(node, source, diagonal, None, lambda: scale, affine.shift)
    ones = torch.ones(channels, dtype=torch.float64, device=node.meta["val"].device)
    yield _Term(node, node, diagonal, None, lambda: _diagonal(ones, spatial), None)


def _sum_objection(fusion: Fusion, node: fx.Node, a: _Term, b: _Term) -> str:
    first, second, whole = (n.meta["val"] for n in (a.node, b.node, node))
    if not first.shape == second.shape == whole.shape:
        return "one branch is broadcast against the other"
    if not first.dtype == second.dtype == whole.dtype:
        return "the branches have different dtypes"
    if (a.geometry.spatial, a.geometry.inputs) != (b.geometry.spatial, b.geometry.inputs):
        return "the branches have different numbers of spatial axes or input channels"
    for term in (a, b):
        if term.node is not term.source and len(term.node.users) > 1:
            return f"{term.node.name} has {len(term.node.users)} readers"
    layers = [t.layer for t in (a, b) if t.layer is not None]
    why = fusion.owners.objection(*(x for layer in layers for x in layer.tensors))
    return why or sum_objection(a.geometry, b.geometry)


def _make_sum(fusion: Fusion, node: fx.Node, a: _Term, b: _Term) -> None:
    sign = float(get_argument(node, "alpha")) * (1 if operator(node) == "add" else -1)
    main = a.layer or b.layer
    assert main is not None
    whole = sum_geometry(a.geometry, b.geometry)
    weight = sum_weight(a.geometry, a.weight(), b.geometry, sign * b.weight())
    biases = [t * s for t, s in ((a.bias, 1.0), (b.bias, sign)) if t is not None]
    set_weight(fusion.editor, main, weight)
    if biases:
        set_bias(fusion.editor, main, sum(biases[1:], biases[0]))
    set_geometry(main.node, main.source, whole)
    fusion.remove(node, main.node)
    for term in (a, b):
        if operator(term.node) == "batch_norm" and term.node is not term.source:
            remove_batch_norm(fusion.editor, term.node)
        elif term.node is not main.node and term.node is not term.source:
            fusion.editor.graph.erase_node(term.node)


def _pointwise(channels: int, spatial: int) -> Geometry:
    """The geometry of a depthwise layer with a kernel of size 1."""
    one, none = (1,) * spatial, (0,) * spatial
    return Geometry(channels, channels, channels, one, one, none, one)


def _diagonal(values: Tensor, spatial: int) -> Tensor:
    """`[channels, 1, ...]`: the weight of a depthwise layer with a kernel of size 1."""
    return values.reshape(-1, 1, *(1,) * spatial)
