"""Calls of normalisation layers and statistics."""

from __future__ import annotations

from fxprune.testing.sample import Sample, positive, sample, t


def _batch_norm(name: str, *rest: object) -> list[Sample]:
    return [
        sample(name, t(3, 4, 5), t(4), t(4), t(4), positive(4), False, 0.1, 1e-5, *rest),
        sample(name, t(3, 4), None, None, t(4), positive(4), False, 0.1, 1e-5, *rest),
    ]


def _trained(name: str, *rest: object) -> list[Sample]:
    return [
        sample(name, t(3, 4, 5), t(4), t(4), t(4), positive(4), True, 0.1, 1e-5, *rest),
        sample(name, t(3, 4), t(4), None, None, None, True, 0.1, 1e-5, *rest),
    ]


SAMPLES = [
    *_batch_norm("aten.batch_norm", False),
    *_trained("aten.batch_norm", False),
    sample("aten.instance_norm", t(3, 4, 5), t(4), t(4), None, None, True, 0.1, 1e-5, False),
    sample(
        "aten.instance_norm", t(3, 4, 5), t(4), t(4), t(4), positive(4), False, 0.1, 1e-5, False
    ),
    *_batch_norm("aten.native_batch_norm"),
    *_trained("aten.native_batch_norm"),
    *_batch_norm("aten._native_batch_norm_legit"),
    _trained("aten._native_batch_norm_legit")[0],
    sample("aten._native_batch_norm_legit.no_stats", t(3, 4, 5), t(4), t(4), True, 0.1, 1e-5),
    sample(
        "aten._native_batch_norm_legit_no_training",
        t(3, 4, 5),
        t(4),
        t(4),
        t(4),
        positive(4),
        0.1,
        1e-5,
    ),
    sample("aten.layer_norm", t(2, 3, 4), [4], t(4), t(4)),
    sample("aten.layer_norm", t(2, 3, 4), [3, 4], t(3, 4), t(3, 4)),
    sample("aten.layer_norm", t(2, 3, 4), [4]),
    sample("aten.rms_norm", t(2, 3, 4), [4], t(4)),
    sample("aten.rms_norm", t(2, 3, 4), [3, 4], None, 1e-5),
    sample("aten.native_layer_norm", t(2, 3, 4), [4], t(4), t(4), 1e-5),
    sample("aten.native_layer_norm", t(2, 3, 4), [3, 4], None, None, 1e-5),
    sample("aten.group_norm", t(2, 6, 5), 2, t(6), t(6)),
    sample("aten.group_norm", t(2, 6), 3),
    sample("aten.group_norm", t(2, 6, 5, 3), 1, t(6)),
    sample("aten.group_norm", t(2, 4, 5), 4, t(4), t(4)),
    sample("aten.var", t(3, 5)),
    sample("aten.var", t(3, 5), False),
    sample("aten.var.dim", t(3, 4, 5), [1]),
    sample("aten.var.dim", t(3, 4, 5), [-1, 0], False, True),
    sample("aten.var.dim", t(3, 5), None, False),
    sample("aten.var.correction", t(3, 4, 5), [2], correction=0, keepdim=True),
    sample("aten.var.correction", t(3, 5)),
    sample("aten.std", t(3, 5)),
    sample("aten.std.dim", t(3, 4, 5), [-1]),
    sample("aten.std.correction", t(3, 4, 5), [1], correction=2),
    sample("aten.var_mean.dim", t(3, 4, 5), [1], True, True),
    sample("aten.var_mean.correction", t(3, 4, 5), [2], correction=0, keepdim=True),
    sample("aten.var_mean", t(3, 5)),
    sample("aten.std_mean.dim", t(3, 4, 5), [1]),
    sample("aten.std_mean.correction", t(3, 4, 5), [0], correction=0),
]
