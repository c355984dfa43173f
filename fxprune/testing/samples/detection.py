"""Calls of torchvision's operators, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from fxprune.testing.sample import Sample, T, sample, t


def _boxes(count: int) -> T:
    """Boxes of the first image: small numbers, as image and corners."""
    return T((count, 5), "probability")


def _deformed(channels: int, groups: int, offset_groups: int, *, masked: bool) -> Sample:
    """A window of 3 x 2 over an image of 5 x 4 gives one of 3 x 3."""
    places = offset_groups * 6
    return sample(
        "torchvision.deform_conv2d",
        t(2, channels, 5, 4),
        t(4, channels // groups, 3, 2),
        t(2, 2 * places, 3, 3),
        t(2, places, 3, 3) if masked else T((2, 1)),
        t(4),
        *(1, 1, 0, 0, 1, 1, groups, offset_groups, masked),
    )


def _samples() -> list[Sample]:
    import torchvision  # noqa: F401  # registers its operators

    return [
        sample("torchvision.roi_align", t(2, 3, 5, 6), _boxes(4), 3.0, 2, 2, 2, False),
        sample("torchvision.roi_pool", t(2, 3, 5, 6), _boxes(4), 3.0, 2, 2),
        sample("torchvision.ps_roi_align", t(2, 8, 5, 6), _boxes(4), 3.0, 2, 2, 2),
        sample("torchvision.ps_roi_pool", t(2, 8, 5, 6), _boxes(4), 3.0, 2, 2),
        sample("torchvision.nms", T((4, 4), "probability"), t(4), 0.5),
        _deformed(4, 1, 1, masked=True),
        _deformed(4, 1, 1, masked=False),
        _deformed(4, 2, 1, masked=True),
        _deformed(4, 1, 2, masked=True),
        _deformed(8, 2, 4, masked=True),
    ]


SAMPLES = _samples() if find_spec("torchvision") else []
