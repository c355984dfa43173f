"""Folds a scale or a shift of channels into an adjacent layer, across operators that only move numbers."""

from __future__ import annotations

from torch import fx

from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.layers.folded_scale import scale_input, scale_output, shift_objection
from fxprune_passes.rewrite.moves.moved_vector import Vector
from fxprune_passes.rewrite.scales.adjacent_layer import Beside, layer_before, layer_behind
from fxprune_passes.rewrite.scales.constant_operand import Scaling, read_scaling


def fuse_scale(fusion: Fusion, node: fx.Node) -> bool:
    """Folds a multiplication by a constant, or its addition, into a layer; returns whether it did."""
    found = read_scaling(fusion.editor, fusion.memory, node)
    if found is None or fusion.is_refused(node):
        return False
    vector = found.vector()
    if vector is None:
        if isinstance(layer_before(found.source, Vector.of_one()), Beside):
            fusion.leave(node, "the scale or shift stays", "it varies along several axes", "scale")
        return False
    ahead = layer_before(found.source, vector)
    why = _into(fusion, node, ahead, found, is_before=True)
    if not why:
        return True
    behind = layer_behind(node, vector)
    why_behind = _into(fusion, node, behind, found, is_before=False)
    if not why_behind:
        return True
    reasons = [w for w, place in ((why, ahead), (why_behind, behind)) if place]
    if reasons and not fusion.is_refused(node):
        fusion.leave(node, "the scale or shift stays", "; ".join(reasons), "scale")
    return False


def _into(
    fusion: Fusion, node: fx.Node, place: Beside | str, found: Scaling, *, is_before: bool
) -> str:
    """Folds a scale and a shift into a layer; returns why it cannot, or "" where it did."""
    if isinstance(place, str):
        return place or "the adjacent node is not a layer"
    layer = place.layer
    scale, shift = place.parts(found.scale, found.shift)
    if not is_before and (why := shift_objection(layer, shift)):
        return why
    if why := fusion.owners.objection(*layer.tensors):
        return why
    if not fusion.allow(node, f"folded into {layer.node.name}", "scaled"):
        return "permission was refused"
    change = scale_output if is_before else scale_input
    change(fusion.editor, layer, scale, shift)
    fusion.remove(node, found.source)
    return ""
