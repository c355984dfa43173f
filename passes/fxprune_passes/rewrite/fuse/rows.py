"""Fuses consecutive layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.fuse.compose import (
    chain_bias,
    chain_geometry,
    chain_objection,
    chain_weight,
)
from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.fuse.narrow import narrow_pair
from fxprune_passes.rewrite.layers.affine_layer import Geometry, Layer, read_layer
from fxprune_passes.rewrite.layers.layer_call import set_geometry
from fxprune_passes.rewrite.layers.stored_weights import (
    is_zero,
    layer_bias,
    layer_weight,
    set_bias,
    set_weight,
)


@dataclass(frozen=True)
class Segment:
    """Some consecutive layers and the layer that would replace them.

    Attributes:
        layers: the layers in execution order.
        geometry: the geometry of the fused layer.
        cost: the cost of the fused layer.
        biased: whether its bias is nonzero.
        objection: why it would not be exact; "" where it is.
    """

    layers: tuple[Layer, ...]
    geometry: Geometry
    cost: float
    biased: bool
    objection: str = ""


def find_rows(fusion: Fusion, *, norms: bool = False) -> Iterator[tuple[Layer, ...]]:
    """The longest sequences of layers in which each layer is read by the next one only.

    Args:
        fusion: the run of the pass.
        norms: whether batch norms, in either mode, may lie between two layers.
    """
    after: dict[fx.Node, Layer] = {}
    layers = [x for n in fusion.editor.nodes if (x := read_layer(n)) is not None]
    for layer in layers:
        between = nodes_between(layer) if norms else ()
        before = read_layer(between[-1].args[0] if between else layer.source)
        if before is None:
            continue
        if why := _row_objection(fusion, before, layer, between):
            fusion.leave(layer.node, f"not fused with {before.node.name}", why, "row")
        else:
            after[before.node] = layer
    inner = {layer.node for layer in after.values()}
    for layer in layers:
        row = [layer]
        while layer.node not in inner and row[-1].node in after:
            row.append(after[row[-1].node])
        if len(row) > 1:
            yield tuple(row)


def nodes_between(layer: Layer) -> tuple[fx.Node, ...]:
    """The batch norms between a layer and the layer before it, the last one first."""
    found: list[fx.Node] = []
    node = layer.source
    while operator(node) == "batch_norm":
        found.append(node)
        node = get_argument(node, "input")
    return tuple(found)


def _row_objection(
    fusion: Fusion, first: Layer, second: Layer, between: tuple[fx.Node, ...]
) -> str:
    for node in (first.node, *between):
        if len(node.users) > 1:
            return f"{node.name} has {len(node.users)} readers"
    if first.transposed or second.transposed:
        return "transposed convolutions are not fused"
    if first.geometry.spatial != second.geometry.spatial:
        return "the layers have different numbers of spatial axes"
    return fusion.owners.objection(*first.tensors, *second.tensors)


def fuse_row(fusion: Fusion, row: tuple[Layer, ...]) -> bool:
    """Fuses the parts of a sequence with the lowest total cost and narrows the others; returns whether it did."""
    parts = divide_row(fusion, row)
    narrowed = [_keep_apart(fusion, one, two) for one, two in pairwise(parts)]
    fused = [_fuse(fusion, part) for part in parts if len(part.layers) > 1]
    return any(narrowed) or any(fused)


def _keep_apart(fusion: Fusion, one: Segment, two: Segment) -> bool:
    """Narrows two adjacent parts, or records why they stay as they are; returns whether they were narrowed."""
    first, second = one.layers[-1], two.layers[0]
    single = len(one.layers) == len(two.layers) == 1
    needed = narrow_pair(fusion, first, second) if single else ""
    if needed is None:
        return True
    why, code = why_apart(fusion, one, two)
    why = f"{why}; {needed}" if needed else why
    return fusion.leave(second.node, f"not fused with {first.node.name}", why, code)


def divide_row(fusion: Fusion, row: tuple[Layer, ...]) -> list[Segment]:
    """The division with the lowest cost, then the fewest parts; with `when=always` the fewest parts come first."""
    best: list[tuple[tuple[float, float], list[Segment]]] = [((0.0, 0.0), [])]
    for end in range(1, len(row) + 1):
        found = []
        for start in range(end):
            part = make_segment(fusion, row[start:end])
            if part.objection and not fusion.allow_border:
                continue
            parts = [*best[start][1], part]
            key = (sum(p.cost for p in parts), float(len(parts)))
            found.append((key[::-1] if fusion.always else key, parts))
        best.append(min(found, key=lambda one: one[0]))
    return best[-1][1]


def make_segment(fusion: Fusion, layers: tuple[Layer, ...]) -> Segment:
    """The layer that would replace some consecutive layers."""
    first, *rest = layers
    geometry, biased, objection = first.geometry, _is_biased(fusion, first), ""
    for layer in rest:
        objection = objection or chain_objection(geometry, layer.geometry, biased)
        geometry = chain_geometry(geometry, layer.geometry)
        biased = biased or _is_biased(fusion, layer)
    cost = fusion.cost.of(geometry, first.source, layers[-1].node)
    return Segment(layers, geometry, cost, biased, objection)


def _is_biased(fusion: Fusion, layer: Layer) -> bool:
    return layer.bias is not None and not is_zero(layer_bias(fusion.editor, layer))


def why_apart(fusion: Fusion, one: Segment, two: Segment) -> tuple[str, str]:
    """Why two adjacent parts of a sequence are not fused, and the code of the remark."""
    whole = make_segment(fusion, (*one.layers, *two.layers))
    if whole.objection and not fusion.allow_border:
        return whole.objection, "border"
    return f"the fused layer would cost {fusion.text(whole.cost, one.cost + two.cost)}", "cost"


def _fuse(fusion: Fusion, part: Segment) -> bool:
    first, *rest = part.layers
    last = rest[-1]
    names = ", ".join(layer.node.name for layer in part.layers[:-1])
    old = sum(make_segment(fusion, (layer,)).cost for layer in part.layers)
    costs = fusion.text(part.cost, old)
    if not fusion.allow(last.node, f"fused with {names}", "fused", costs):
        return False
    fusion.border_changed = fusion.border_changed or bool(part.objection)
    geometry, weight = first.geometry, layer_weight(fusion.editor, first)
    bias = layer_bias(fusion.editor, first)
    for layer in rest:
        w2, b2 = layer_weight(fusion.editor, layer), layer_bias(fusion.editor, layer)
        bias = chain_bias(layer.geometry, w2, bias, b2)
        weight = chain_weight(geometry, weight, layer.geometry, w2)
        geometry = chain_geometry(geometry, layer.geometry)
    set_weight(fusion.editor, last, weight)
    if any(layer.bias is not None for layer in part.layers):
        set_bias(fusion.editor, last, bias)
    set_geometry(last.node, first.source, geometry)
    for layer in reversed(part.layers[:-1]):
        fusion.editor.graph.erase_node(layer.node)
    return True
