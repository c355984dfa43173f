"""Calls of fake quantisation."""

from __future__ import annotations

from fxprune.testing.sample import Sample, T, sample, t


def _single(*shape: int) -> T:
    return T(shape, "single")


def _points(count: int) -> T:
    """Zero points: int32, from 1 to `count`."""
    return T((count,), "ends", count)


def _observed(name: str, x: T, channels: int, axis: int, *, per_row: bool) -> Sample:
    on, state = _points(1), _single(channels)
    return sample(
        f"aten.{name}", x, on, on, state, state, state, _points(channels), 0.1, 0, 15, axis, per_row, False
    )  # fmt: skip


SAMPLES = [
    *(
        _observed(name, x, channels, axis, per_row=per_row)
        for name in (
            "_fused_moving_avg_obs_fq_helper",
            "_fused_moving_avg_obs_fq_helper_functional",
        )
        for x, channels, axis, per_row in (
            (_single(4, 3, 2), 4, 0, True),
            (_single(4, 3), 4, 0, True),
            (_single(4, 3, 2), 1, -1, False),
        )
    ),
    *(
        sample(f"aten.{name}", _single(*shape), _single(4), point, axis, 0, 15)
        for name, point in (
            ("fake_quantize_per_channel_affine", _points(4)),
            ("fake_quantize_per_channel_affine_cachemask", _points(4)),
            ("_fake_quantize_learnable_per_channel_affine", _single(4)),
        )
        for shape, axis in (((4, 3, 2), 0), ((3, 4), 1))
    ),
    sample("aten.fake_quantize_per_tensor_affine", t(4, 3), 0.1, 2, 0, 15),
    sample("aten.fake_quantize_per_tensor_affine_cachemask", t(4, 3), 0.1, 2, 0, 15),
    sample(
        "aten.fake_quantize_per_tensor_affine.tensor_qparams",
        t(4, 3),
        _single(1),
        _points(1),
        0,
        15,
    ),
    sample("aten._fake_quantize_learnable_per_tensor_affine", t(4, 3), T((1,)), T((1,)), 0, 15),
    sample(
        "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        t(4, 3),
        _single(1),
        _points(1),
        _points(1),
        0,
        15,
    ),
]
