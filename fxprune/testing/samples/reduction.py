"""Calls of operators that reduce an axis or scan along it."""

from __future__ import annotations

from fxprune.testing.sample import Sample, T, mask, positive, sample, t


def _alike(name: str) -> list[Sample]:
    return [sample(f"aten.{name}", t(3, 4, 5), 1), sample(f"aten.{name}", t(3, 4), -1)]


SAMPLES = [
    sample("aten.sum", t(3, 4)),
    sample("aten.sum.dim_IntList", t(3, 4, 5), [1]),
    sample("aten.sum.dim_IntList", t(3, 4, 5), [-1, 0], True),
    sample("aten.sum.dim_IntList", t(3, 4, 5), None),
    sample("aten.sum", t()),
    sample("aten.nansum", t(3, 4, 5), [2]),
    sample("aten.mean", t(3, 4)),
    sample("aten.mean.dim", t(3, 4, 5), [1]),
    sample("aten.mean.dim", t(3, 4, 5), [-1, 0], True),
    sample("aten.mean.dim", t(3, 4, 5), None),
    sample("aten.mean.dim", t(3, 4, 5), []),
    sample("aten.linalg_vector_norm", t(3, 4, 5), 2, [-1]),
    sample("aten.linalg_vector_norm", t(3, 4, 5), 1, [1], True),
    sample("aten.linalg_vector_norm", t(3, 4)),
    sample("aten.linalg_vector_norm", t(3, 4), float("inf"), [1]),
    sample("aten.linalg_vector_norm", t(3, 4), float("-inf"), [1]),
    sample("aten.norm.ScalarOpt_dim", t(3, 4, 5), 2, [1], True),
    sample("aten.norm.ScalarOpt_dim", t(3, 4, 5), -1, [1]),
    sample("aten.norm.Scalar", t(3, 4)),
    sample("aten.amax", t(3, 4, 5), [1]),
    sample("aten.amax", t(3, 4, 5), [0, -1], True),
    sample("aten.amin", t(3, 4, 5)),
    sample("aten.max", t(3, 4)),
    sample("aten.max.dim", t(3, 4, 5), 1),
    sample("aten.max.other", t(3, 4), t(4)),
    sample("aten.min", t(3, 4)),
    sample("aten.min.dim", t(3, 4, 5), -1, True),
    sample("aten.min.other", t(3, 4), t(3, 1)),
    sample("aten.argmax", t(3, 4, 5), 1),
    sample("aten.argmax", t(3, 4)),
    sample("aten.argmin", t(3, 4, 5), 1, True),
    sample("aten.prod", t(3, 4)),
    sample("aten.prod.dim_int", t(3, 4, 5), 1),
    sample("aten.logsumexp", t(3, 4, 5), [1]),
    sample("aten.any", mask(3, 4)),
    sample("aten.any.dim", mask(3, 4), 1),
    sample("aten.any.dims", mask(3, 4, 5), [0, 1]),
    sample("aten.all", mask(3, 4)),
    sample("aten.all.dim", mask(3, 4), 1, True),
    sample("aten.median", t(3, 5)),
    sample("aten.median.dim", t(3, 5), 1),
    sample("aten.mode", t(3, 5), 1),
    sample("aten.mode", t(3, 5)),
    sample("aten.kthvalue", t(3, 5), 2, 0),
    sample("aten.kthvalue", t(3, 5), 2),
    sample("aten.count_nonzero.dim_IntList", mask(3, 5), [1]),
    sample("aten.count_nonzero", mask(3, 5)),
    sample("aten.softmax.int", t(3, 4, 5), 1),
    sample("aten._softmax", t(3, 4, 5), -1, False),
    sample("aten.log_softmax.int", t(3, 4, 5), 1),
    sample("aten._log_softmax", t(3, 4, 5), -1, False),
    *(
        s
        for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
        for s in _alike(name)
    ),
    sample("aten._fft_r2c", t(3, 4, 5), [1], 0, True),
    sample("aten._fft_c2c", T((3, 4), "complex"), [1], 0, True),
    sample("aten._fft_c2r", T((3, 4), "complex"), [1], 0, 6),
    sample("aten.sort", t(3, 4)),
    sample("aten.sort", t(3, 4), 0, True),
    sample("aten.sort.stable", t(3, 4), stable=True, dim=0),
    sample("aten.sort.stable", t(3, 4), stable=True),
    sample("aten.msort", t(3, 4)),
    sample("aten.argsort", t(3, 4)),
    sample("aten.argsort", t(3, 4), 0),
    sample("aten.argsort.stable", t(3, 4), stable=True, dim=0),
    sample("aten.topk", t(3, 5), 2),
    sample("aten.topk", t(3, 5, 4), 2, 1),
    sample("aten.cosine_similarity", t(3, 4), t(3, 4)),
    sample("aten.cosine_similarity", t(3, 4, 5), t(4, 5), -1),
    sample("aten.cosine_similarity", positive(2, 3, 4), positive(2, 3, 4), 0),
]
