"""The networks that tests of training share."""

from __future__ import annotations

import pytest
from torch import nn

from fxprune.testing.training import SHAPES


@pytest.fixture(params=list(SHAPES), ids=lambda k: k.__name__)
def kind(request: pytest.FixtureRequest) -> type[nn.Module]:
    """One of the networks."""
    found: type[nn.Module] = request.param
    return found
