"""Calls of operators that multiply and sum."""

from __future__ import annotations

from fxprune.testing.sample import Sample, T, sample, t


def _conv(name: str, k: int) -> list[Sample]:
    size = (5, 6, 7)[:k]
    kernel = (3, 2, 1)[:k]
    return [
        sample(f"aten.{name}", t(2, 4, *size), t(3, 4, *kernel), t(3)),
        sample(f"aten.{name}", t(2, 4, *size), t(3, 4, *kernel), None, [2] * k, [1] * k),
        sample(f"aten.{name}", t(4, *size), t(3, 4, *kernel), t(3)),
        sample(
            f"aten.{name}", t(2, 4, *size), t(6, 2, *kernel), t(6), [1] * k, [0] * k, [1] * k, 2
        ),
        sample(f"aten.{name}", t(4, *size), t(6, 2, *kernel), t(6), [1] * k, [0] * k, [1] * k, 2),
        sample(
            f"aten.{name}", t(2, 4, *size), t(4, 1, *kernel), t(4), [1] * k, [0] * k, [1] * k, 4
        ),
        sample(
            f"aten.{name}", t(2, 4, *size), t(8, 1, *kernel), None, [1] * k, [0] * k, [1] * k, 4
        ),
        sample(
            f"aten.{name}.padding",
            t(2, 4, *size),
            t(6, 2, *[3] * k),
            t(6),
            [1] * k,
            "same",
            [1] * k,
            2,
        ),
    ]


def _transposed(name: str, k: int) -> list[Sample]:
    size, kernel, ones = (5, 6, 7)[:k], (3, 2, 1)[:k], [1] * k
    op = f"aten.{name}.input" if k > 1 else f"aten.{name}.default"
    return [
        sample(op, t(2, 4, *size), t(4, 3, *kernel), t(3)),
        sample(op, t(4, *size), t(4, 3, *kernel), None, [2] * k),
        sample(op, t(2, 4, *size), t(4, 3, *kernel), t(6), ones, [0] * k, [0] * k, 2),
        sample(op, t(2, 6, *size), t(6, 1, *kernel), t(6), ones, [0] * k, [0] * k, 6),
        sample(op, t(2, 6, *size), t(6, 2, *kernel), t(12), ones, [0] * k, [0] * k, 6, ones),
    ]


def _general(
    op: str, weight: T, bias: T | None, transposed: bool, groups: int, *flags: bool
) -> Sample:
    """A convolution as its general operators take it, of stride 1 without padding."""
    ones, zeros = [1, 1], [0, 0]
    x = t(2, 4, 5, 6)
    return sample(op, x, weight, bias, ones, zeros, ones, transposed, zeros, groups, *flags)


CONVOLUTIONS = [
    *(s for k in (1, 2, 3) for s in _conv(f"conv{k}d", k)),
    *(s for k in (1, 2, 3) for s in _transposed(f"conv_transpose{k}d", k)),
    _general("aten.convolution", t(3, 4, 2, 2), t(3), False, 1),
    _general("aten.convolution", t(6, 2, 2, 2), None, False, 2),
    _general("aten.convolution", t(4, 3, 2, 2), t(6), True, 2),
    _general("aten._convolution", t(6, 2, 2, 2), t(6), False, 2, False, False, False, False),
]

PRODUCTS = [
    sample("aten.mm", t(3, 4), t(4, 5)),
    sample("aten.bmm", t(2, 3, 4), t(2, 4, 5)),
    sample("aten.matmul", t(3, 4), t(4, 5)),
    sample("aten.matmul", t(4), t(4)),
    sample("aten.matmul", t(4), t(4, 5)),
    sample("aten.matmul", t(3, 4), t(4)),
    sample("aten.matmul", t(2, 3, 4), t(4, 5)),
    sample("aten.matmul", t(2, 3, 4), t(4)),
    sample("aten.matmul", t(4), t(2, 4, 5)),
    sample("aten.matmul", t(2, 6, 3, 4), t(6, 4, 5)),
    sample("aten.matmul", t(2, 1, 3, 4), t(2, 6, 4, 5)),
    sample("aten.mv", t(3, 4), t(4)),
    sample("aten.dot", t(4), t(4)),
    sample("aten.vdot", t(4), t(4)),
    sample("aten.inner", t(2, 3, 4), t(5, 4)),
    sample("aten._cdist_forward", t(2, 3, 4), t(2, 5, 4), 2.0, None),
    sample("aten._cdist_forward", t(3, 4), t(5, 4), 1.0, None),
    sample("aten.linalg_cross", t(5, 3), t(5, 3)),
    sample("aten.linalg_cross", t(3, 5), t(3, 1), dim=0),
    sample("aten.outer", t(3), t(4)),
    sample("aten.ger", t(3), t(4)),
    sample("aten.addmm", t(5), t(3, 4), t(4, 5)),
    sample("aten.addmm", t(3, 5), t(3, 4), t(4, 5), beta=2, alpha=3),
    sample("aten.addmm", t(3, 1), t(3, 4), t(4, 5)),
    sample("aten.addmv", t(3), t(3, 4), t(4)),
    sample("aten.baddbmm", t(2, 3, 5), t(2, 3, 4), t(2, 4, 5)),
    sample("aten.baddbmm", t(5), t(2, 3, 4), t(2, 4, 5), beta=0.5),
    sample("aten.addbmm", t(3, 5), t(2, 3, 4), t(2, 4, 5)),
    sample("aten.addbmm", t(5), t(2, 3, 4), t(2, 4, 5), alpha=2),
    sample("aten.linear", t(2, 3, 4), t(5, 4), t(5)),
    sample("aten.linear", t(4), t(5, 4)),
    sample("aten.linear", t(2, 4), t(4)),
    sample("aten.linear", t(2, 3, 4), t(4), t()),
    sample("aten._grouped_mm", T((8, 4), "single"), T((3, 4, 16), "single"), T((3,), "ends", 8)),
    sample("aten.bilinear", t(2, 3), t(2, 4), t(5, 3, 4), t(5)),
    sample("aten.bilinear", t(6, 2, 3), t(6, 2, 4), t(5, 3, 4)),
]

SAMPLES = [*PRODUCTS, *CONVOLUTIONS]
