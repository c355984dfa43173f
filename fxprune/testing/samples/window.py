"""Calls of pooling, resampling and sliding windows."""

from __future__ import annotations

from fxprune.testing.sample import Sample, positive, sample, t

SIZE = (8, 6, 4)


def _pools(k: int) -> list[Sample]:
    x, flat = t(2, 3, *SIZE[:k]), t(3, *SIZE[:k])
    twos = [2] * k
    adaptive = [f"aten.adaptive_avg_pool{k}d", *([f"aten._adaptive_avg_pool{k}d"] if k > 1 else [])]
    indexed = [f"aten.max_pool{k}d_with_indices"] if k > 1 else ["aten.max_pool1d_with_indices"]
    return [
        *(sample(f"aten.{name}_pool{k}d", a, twos) for name in ("max", "avg") for a in (x, flat)),
        *(sample(name, a, twos) for name in adaptive for a in (x, flat)),
        *(sample(name, a, twos) for name in indexed for a in (x, flat)),
        *(sample(f"aten.adaptive_max_pool{k}d", a, twos) for a in (x, flat)),
    ]


def _resampled(k: int) -> list[Sample]:
    x, size = t(2, 3, *SIZE[:k]), [5, 4, 3][:k]
    linear = ("linear1d", "bilinear2d", "trilinear3d")[k - 1]
    return [
        sample(f"aten.upsample_nearest{k}d", x, size),
        sample(f"aten.upsample_nearest{k}d.vec", x, None, [2.0] * k),
        sample(f"aten._upsample_nearest_exact{k}d", x, size),
        sample(f"aten.upsample_{linear}", x, size, False),
        sample(f"aten.upsample_{linear}.vec", x, size, False, None),
    ]


SAMPLES = [
    *(s for k in (1, 2, 3) for s in (*_pools(k), *_resampled(k))),
    sample("aten.upsample_bicubic2d", t(2, 3, 5, 6), [4, 8], False),
    sample("aten.upsample_bicubic2d.vec", t(2, 3, 5, 6), [4, 8], False, None),
    sample("aten._upsample_bilinear2d_aa", t(2, 3, 5, 6), [4, 8], False),
    sample("aten._upsample_bicubic2d_aa", t(2, 3, 5, 6), [4, 8], False),
    sample("aten.fractional_max_pool2d", t(2, 3, 5, 6), [2, 2], [3, 3], positive(2, 3, 2)),
    sample("aten.im2col", t(2, 3, 5, 6), [2, 3], [1, 1], [0, 0], [1, 1]),
    sample("aten.im2col", t(3, 5, 6), [2, 3], [1, 1], [0, 0], [1, 1]),
    sample("aten.col2im", t(2, 12, 20), [5, 6], [2, 2], [1, 1], [0, 0], [1, 1]),
    sample("aten.col2im", t(12, 20), [5, 6], [2, 2], [1, 1], [0, 0], [1, 1]),
    sample("aten.unfold", t(3, 8, 4), 1, 3, 2),
    sample("aten.unfold", t(3, 8), -1, 3, 1),
]
