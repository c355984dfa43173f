"""Calls of scaled dot-product attention."""

from __future__ import annotations

from fxprune.testing.sample import mask, sample, t

SDPA = "aten.scaled_dot_product_attention"

SAMPLES = [
    sample(SDPA, t(2, 3, 4, 5), t(2, 3, 6, 5), t(2, 3, 6, 7)),
    sample(SDPA, t(2, 3, 4, 5), t(2, 3, 6, 5), t(2, 3, 6, 7), scale=0.5),
    sample(SDPA, t(2, 3, 4, 5), t(2, 3, 4, 5), t(2, 3, 4, 5), None, 0.0, True),
    sample(SDPA, t(3, 4, 5), t(3, 6, 5), t(3, 6, 5)),
    sample(SDPA, t(4, 5), t(6, 5), t(6, 7)),
    sample(SDPA, t(2, 3, 4, 5), t(2, 3, 6, 5), t(2, 3, 6, 7), mask(4, 6)),
    sample(SDPA, t(2, 3, 4, 5), t(2, 3, 6, 5), t(2, 3, 6, 7), t(2, 3, 4, 6)),
    sample(SDPA, t(2, 3, 4, 5), t(2, 3, 6, 5), t(2, 3, 6, 7), t(2, 1, 1, 6)),
    sample(SDPA, t(2, 6, 4, 5), t(2, 3, 7, 5), t(2, 3, 7, 8), enable_gqa=True),
    sample(SDPA, t(2, 6, 4, 5), t(2, 3, 7, 5), t(2, 3, 7, 8), t(1, 6, 4, 7), enable_gqa=True),
    sample(SDPA, t(2, 3, 4, 5), t(2, 3, 7, 5), t(2, 3, 7, 8), enable_gqa=True),
    sample(SDPA, t(2, 4, 4, 5), t(2, 1, 7, 5), t(2, 1, 7, 8), enable_gqa=True),
]
