"""Folds a scale or shift of channels into a layer beside it, seen through what only moves numbers."""

from __future__ import annotations

from torch import fx

from fxprune_passes.rewrite.affine_layer import scale_input, scale_output, shift_objection
from fxprune_passes.rewrite.beside import Beside, layer_before, layer_behind
from fxprune_passes.rewrite.constant_operand import Scaling, read_scaling
from fxprune_passes.rewrite.fusion import Fusion
from fxprune_passes.rewrite.moved_vector import Vector


def fuse_scale(fusion: Fusion, node: fx.Node) -> bool:
    """Folds a multiplication by, or an addition of, a constant into a layer; whether that was done."""
    found = read_scaling(fusion.editor, fusion.memory, node)
    if found is None or fusion.is_refused(node):
        return False
    vector = found.vector()
    if vector is None:
        if isinstance(layer_before(found.source, Vector.of_one()), Beside):
            fusion.leave(node, "scale or shift stays", "it varies along several axes", "scale")
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
        fusion.leave(node, "scale or shift stays", "; ".join(reasons), "scale")
    return False


def _into(
    fusion: Fusion, node: fx.Node, place: Beside | str, found: Scaling, *, is_before: bool
) -> str:
    """Folds a scale and shift into a layer; why not, or ""."""
    if isinstance(place, str):
        return place or "no layer is there"
    layer = place.layer
    scale, shift = place.parts(found.scale, found.shift)
    if not is_before and (why := shift_objection(layer, shift)):
        return why
    if why := fusion.owners.objection(*layer.tensors):
        return why
    if not fusion.allow(node, f"folded into {layer.node.name}", "scaled"):
        return "it was not to be done"
    change = scale_output if is_before else scale_input
    change(fusion.editor, layer, scale, shift)
    fusion.remove(node, found.source)
    return ""
