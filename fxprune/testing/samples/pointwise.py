"""Calls of elementwise operators."""

from __future__ import annotations

import torch

from fxprune.testing.sample import Sample, T, mask, positive, sample, t

ONE = (
    "alias",
    "clone",
    "contiguous",
    "detach",
    "lift_fresh_copy",
    "lift_fresh",
    "selu",
    "celu",
    "resolve_conj",
    "resolve_neg",
    "conj",
    "nan_to_num",
    "log_sigmoid",
    "softplus",
    "mish",
    "hardswish",
    "square",
    "fix",
    "absolute",
    "arctan",
    "real",
    "special_expm1",
    "relu",
    "gelu",
    "exp",
    "hardtanh",
    "relu6",
    "rrelu",
    "_to_copy",
    "isnan",
    "zero",
    "logical_not",
)
TWO = (
    "add.Tensor",
    "sub.Tensor",
    "mul.Tensor",
    "div.Tensor",
    "pow.Tensor_Tensor",
    "maximum.default",
    "minimum.default",
    "true_divide.Tensor",
    "divide.Tensor",
    "multiply.Tensor",
    "subtract.Tensor",
    "rsub.Tensor",
    "greater.Tensor",
    "less.Tensor",
    "not_equal.Tensor",
    "eq.Tensor",
    "complex.default",
    "polar.default",
    "atan2.default",
    "copy.default",
    "rrelu_with_noise.default",
)


def _two(name: str) -> list[Sample]:
    pairs = [(t(3, 4), t(3, 4))]
    if not name.startswith(("rrelu", "copy")):
        pairs += [(t(2, 3, 4), t(4)), (t(3, 4), t(3, 1)), (t(), t(4))]
    return [sample(f"aten.{name}", *pair) for pair in pairs]


SAMPLES = [
    *(sample(f"aten.{name}", t(3, 4)) for name in ONE),
    *(s for name in TWO for s in _two(name)),
    sample("aten.copy", t(3, 4), t(4)),
    sample("aten.imag", T((3, 4), "complex")),
    sample("aten._conj", T((3, 4), "complex")),
    sample("aten._neg_view", t(3, 4)),
    sample("aten.angle", T((3, 4), "complex")),
    sample("aten.add.Tensor", t(1, 4), t(3, 1)),
    sample("aten.add.Tensor", t(1, 1), t(1)),
    sample("aten.mul.Scalar", t(3, 4), 2.0),
    sample("aten.addcmul", t(4), t(3, 4), t(3, 1)),
    sample("aten.lerp.Tensor", t(3, 4), t(3, 4), t(4)),
    sample("aten.polygamma", 1, positive(3, 4)),
    sample("aten.frexp.Tensor", t(3, 4)),
    sample("aten.float_power.Scalar", 2, t(3, 4)),
    sample("aten.dropout", t(3, 4), 0.5, True),
    sample("aten.feature_dropout", t(3, 4, 5), 0.5, False),
    sample("aten.alpha_dropout", t(3, 4), 0.5, False),
    sample("aten.feature_alpha_dropout", t(3, 4), 0.5, False),
    sample("aten.native_dropout", t(3, 4), 0.5, False),
    sample("aten.to.dtype", t(3, 4), torch.float64),
    sample("aten.to.other", t(3, 4), t(3)),
    sample("aten.type_as", t(3, 4), t(4, 3)),
    sample("aten.threshold", t(3, 4), 0.5, 2.0),
    sample("aten.clip.Tensor", t(3, 4), t(4)),
    sample("aten.masked_fill.Scalar", t(3, 4), mask(3, 4), 2.0),
    sample("aten.masked_fill.Scalar", t(2, 3, 4), mask(3, 1), 2.0),
    sample("aten.masked_fill.Tensor", t(3, 4), mask(4), t()),
    sample("aten.fill.Scalar", t(3, 4), 2.0),
    sample("aten.fill.Tensor", t(3, 4), t()),
    sample("aten.prelu", t(2, 3, 4), t(3)),
    sample("aten.prelu", t(2, 3, 4), t(1)),
    sample("aten.prelu", t(4), t(1)),
    sample("aten._prelu_kernel", t(2, 3, 4), t(1, 3, 1)),
    sample("aten.glu", t(3, 8)),
    sample("aten.glu", t(3, 8, 5), 1),
    sample("aten.view_as_complex", t(3, 4, 2)),
    sample("aten.view_as_real", T((3, 4), "complex")),
    sample("aten.where.self", mask(3, 4), t(3, 4), t(4)),
    sample("aten.where.ScalarSelf", mask(3, 4), 1.0, t(3, 1)),
    sample("aten.where.ScalarOther", mask(3, 4), t(4), 1.0),
    sample("aten.where.Scalar", mask(3, 4), 1.0, 2.0),
    sample("aten.bernoulli_.float", t(3, 4), 0.5),
    sample("aten.uniform_", t(3, 4)),
    sample("aten.normal_", t(3, 4)),
    *(
        sample(f"aten.{name}{end}", t(3, 4), *args)
        for name, *args in (
            ("random",),
            ("exponential",),
            ("geometric", 0.5),
            ("cauchy",),
            ("log_normal",),
        )
        for end in ("_", "")
    ),
    sample("aten.random.from", t(3, 4), 0, 5),
    sample("aten.uniform", t(3, 4)),
    sample("aten.normal_functional", t(3, 4)),
    sample("aten.relu_", t(3, 4)),
    sample("aten.copy_", t(3, 4), t(4)),
    sample("aten.add_.Tensor", t(3, 4), t(3, 1)),
]
