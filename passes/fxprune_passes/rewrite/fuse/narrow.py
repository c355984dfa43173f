"""Narrows what lies between two consecutive layers to the rank of both together."""

from __future__ import annotations

import torch

from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.layers.affine_layer import Layer
from fxprune_passes.rewrite.layers.stored_weights import (
    layer_bias,
    layer_weight,
    set_bias,
    set_weight,
)

Tensor = torch.Tensor


def narrow_pair(fusion: Fusion, first: Layer, second: Layer) -> str | None:
    """Narrows the channels between two layers that are not fused, where both have a lower rank. Exact.

    With the first weight as A `[b, a*k1 + 1]`, its bias as the last column, and the second as B `[c*k2, b]`,
    the layers compute BA, whatever their geometry: what the second pads with is 0, which A maps nothing to.
    The singular value decomposition of BA is found from those of b rows and columns, B = QR and A^T = PT:
    R T^T = U S V^T, so that the new B is Q U S^(1/2) and the new A is S^(1/2) V^T P^T. A rank below b is certain
    where b is larger than a*k1 + 1 or c*k2.

    Returns:
        None where the layers were narrowed; otherwise why not, "" where the weights were not looked at.
    """
    if first.geometry.groups > 1 or second.geometry.groups > 1:
        return ""
    a, b = _rows(fusion, first), layer_weight(fusion.editor, second).movedim(1, -1)
    if a.is_meta or b.is_meta:
        return ""
    width = len(a)
    (p, t), (q, r) = torch.linalg.qr(a.T), torch.linalg.qr(b.flatten(0, -2))
    u, s, v = torch.linalg.svd(r @ t.T, full_matrices=False)
    rank = max(1, int((s > s[0] * max(len(q), len(p)) * torch.finfo(s.dtype).eps).sum()))
    if rank == width:
        return f"all {width} channels between the layers are needed (rank {rank})"
    what = f"narrowed from {width} to {rank} channels in front of {second.node.name}"
    if not fusion.allow(first.node, what, "narrowed", f"the rank of both layers is {rank}"):
        return ""
    root = s[:rank].sqrt()
    _set(fusion, first, (p @ (v[:rank].T * root)).T)
    weight = (q @ (u[:, :rank] * root)).reshape(*b.shape[:-1], rank)
    set_weight(fusion.editor, second, weight.movedim(-1, 1).contiguous())
    return None


def _rows(fusion: Fusion, layer: Layer) -> Tensor:
    """The weight of a layer as `[out, in*k]`, with its bias as a last column where it has one."""
    weight = layer_weight(fusion.editor, layer).flatten(1)
    if layer.bias is None:
        return weight
    return torch.cat([weight, layer_bias(fusion.editor, layer)[:, None]], 1)


def _set(fusion: Fusion, layer: Layer, rows: Tensor) -> None:
    shape = layer_weight(fusion.editor, layer).shape[1:]
    weight = rows if layer.bias is None else rows[:, :-1]
    set_weight(fusion.editor, layer, weight.reshape(-1, *shape))
    if layer.bias is not None:
        set_bias(fusion.editor, layer, rows[:, -1])
    fusion.editor.retype(layer.node)
