from __future__ import annotations

import pytest

from fxprune.rules.table import lookup, rule_names
from fxprune.testing.samples import ALIASES, samples


@pytest.mark.parametrize("name", rule_names())
def test_every_rule_has_a_sample(name: str) -> None:
    assert samples(ALIASES.get(name, name))


def test_every_alias_names_the_same_rule_as_its_sample() -> None:
    for name, other in ALIASES.items():
        assert lookup(name) is lookup(other, pointwise=True)


def test_an_overload_is_found_before_the_operator() -> None:
    assert lookup("aten.split.sizes") is not lookup("aten.split.Tensor")
    assert lookup("aten.mm.default") is lookup("aten.mm")


def test_an_unknown_operator_has_no_rule() -> None:
    assert lookup("aten.no_such_operator.default") is None
    assert lookup("aten.no_such_operator.default", pointwise=True) is lookup("tag.pointwise")
