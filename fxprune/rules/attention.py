"""Scaled dot-product attention."""

from __future__ import annotations

from fxprune.algebra.units import Axes, Label, Units, merge
from fxprune.rules.table import rule


@rule("aten.scaled_dot_product_attention")
def sdpa(
    u: Units,
    q: Axes,
    k: Axes,
    v: Axes,
    mask: Axes | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Axes:
    """Scaled dot-product attention: q is `[b, h, t, d]`, k `[b, h, s, d]` and v `[b, h, s, e]`.

    The default `scale` is derived from d and must be pinned when positions of d are removed.
    """
    u.freeze(q[-2], k[-2], v[-2], why="attention mixes all positions of this axis")
    if scale is None:
        u.pin("scale", len(q[-1]) ** -0.5, q[-1])
    u.contract(q[-1], k[-1])
    batch = _batch(u, q, k, v, enable_gqa)
    if mask is not None:
        u.freeze(*mask[-2:], why="attention mixes all positions of this axis")
        batch = u.broadcast(batch, mask[:-2])
    return (*batch, q[-2], v[-1])


def _batch(u: Units, q: Axes, k: Axes, v: Axes, enable_gqa: bool) -> Axes:
    """Couples the leading axes; with grouped queries, each key-value head serves a run of query heads."""
    if not enable_gqa or len(q[-3]) == len(k[-3]):
        return u.broadcast(q[:-2], k[:-2], v[:-2])
    head, run = u.split(q[-3], len(k[-3]), -1)
    head = u.unify(head, k[-3], v[-3])
    lead = u.broadcast(q[:-3], k[:-3], v[:-3])
    heads: Label = merge(head, run)
    return (*lead, heads)
