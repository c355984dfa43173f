from __future__ import annotations

from collections.abc import Callable

import pytest

from fxprune.testing.sample import Sample
from fxprune.testing.samples import samples_of_family


@pytest.mark.parametrize("sample", samples_of_family("detection"), ids=str)
def test_agrees_with_the_operator(sample: Sample, judge: Callable[[Sample], None]) -> None:
    judge(sample)
